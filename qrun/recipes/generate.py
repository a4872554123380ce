"""`qrun generate`: text, token by token, with the adapter on any device.

qrun generate "Return the sum of" adapter.path=results/runs/<run>/adapter device=noisy noise=heron_r2
"""

import sys
import time
from pathlib import Path

import torch

from qrun.adapters.saving import read
from qrun.config.verbs import GenerateConfig
from qrun.errors import InputError
from qrun.evaluation.protocols import check_ids
from qrun.language import models
from qrun.language.prompts import as_chat, uses_chat
from qrun.recipes.device import circuit_line, open_executor
from qrun.recipes.measuring import attach_saved
from qrun.report.screen import say


def generate(config: GenerateConfig, prompt: str) -> str:
    """Print the continuation as it comes, then circuits and seconds. Returns it. KV cache, so each token runs its own
    circuits once."""
    if not prompt.strip():
        raise InputError("the prompt is empty")
    saved = read(Path(config.adapter.path)) if config.adapter.path else None
    circuits = config.device.kind != "exact"
    executor = open_executor(config, saved.config) if saved and circuits else None
    language = models.load(config.model)
    if saved:
        attach_saved(language, saved, str(config.adapter.path)).set_executor(executor)
    chat = uses_chat(config.prompt, config.model)
    put = as_chat(language.tokenizer, [("user", prompt)]) if chat else prompt
    ids = language.tokenizer(put, add_special_tokens=not chat, return_tensors="pt")["input_ids"].to(language.device)
    check_ids(language.model, ids.cpu().numpy())
    positions = language.shape.max_position_embeddings
    if ids.shape[1] + config.tokens > positions:
        why = f"with a prompt of {ids.shape[1]} the model's {positions} positions are exceeded"
        raise InputError(f"tokens={config.tokens}: {why}")
    generator = torch.Generator().manual_seed(config.seed)
    started, cache, text = time.perf_counter(), None, ""
    made: list[int] = []
    own = language.model.generation_config.eos_token_id  # an instruct model may have several
    stops = {language.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    sys.stdout.write(f"{prompt}\n" if chat else prompt)
    with torch.no_grad():
        while len(made) < config.tokens:
            out = language.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, out.logits[0, -1].float().cpu()
            if config.temperature == 0:
                choice = logits.argmax()
            else:
                choice = torch.multinomial((logits / config.temperature).softmax(-1), 1, generator=generator)[0]
            if choice.item() in stops:
                break
            made.append(int(choice))
            whole = language.tokenizer.decode(made)
            if not whole.endswith("\ufffd"):  # half a character waits for its other half
                sys.stdout.write(whole[len(text) :])
                sys.stdout.flush()
                text = whole
            ids = choice.view(1, 1).to(language.device)
    sys.stdout.write("\n")
    seconds = time.perf_counter() - started
    say(f"\n{len(made)} tokens in {seconds:.1f} s ({len(made) / seconds:.1f} tokens/s)")
    if executor is not None:
        say(circuit_line(executor.statistics.summary(), config))
    return text
