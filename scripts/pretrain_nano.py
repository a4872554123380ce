"""Pretrain `nano`, the language model that ships with qrun, on documentation found on this machine.

    python scripts/pretrain_nano.py --tokens 20e6 --out qrun/language/nano

A LlamaForCausalLM in SmolLM2's proportions (3 heads x 64 = 192 wide, 1 key/value head, FFN 512, tied embeddings) with
its own byte-level BPE tokenizer, trained on the docstrings of installed scientific packages (`data=libdocs`) and never
on `data=pydoc`, so that an adapter trained on pydoc meets a shifted domain. Muon on the matrices of the layers, AdamW
on embeddings and norms, bfloat16 autocast, one pass over shuffled windows, linear decay to zero. Writes the model
folder (float16 safetensors), training_record.json and grams.xz, the 13-grams that `data.clean` cuts out of other text.
About 40 minutes on two cores.
"""

import argparse
import json
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qrun.language.corpus import split_by_hash, text_digest
from qrun.language.docstrings import libdocs_documents, pydoc_documents
from qrun.language.overlap import NANO, all_grams, write_sample

END = "<|endoftext|>"


def train_tokenizer(documents: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, model_max_length=context, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> tuple[torch.Tensor, int]:
    """One stream, each document preceded by the end-of-text token, and the bytes of its text."""
    end = tokenizer.eos_token_id
    ids = [token for row in tokenizer(documents, verbose=False)["input_ids"] for token in (end, *row)]
    return torch.tensor(ids), sum(len(d.encode()) for d in documents)


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, stream: torch.Tensor, characters: int, window: int, limit: int) -> float:
    """Disjoint windows over the first `limit` tokens.

    The first token of each window is not scored and its bytes are not counted.
    """
    total, scored = 0.0, 0
    for start in range(0, min(len(stream), limit) - window, window):
        ids = stream[None, start : start + window]
        total += model(input_ids=ids, labels=ids).loss.item() * (window - 1)
        scored += window - 1
    return total / math.log(2) / (characters * scored / len(stream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=20e6)
    parser.add_argument("--out", type=Path, default=Path("qrun/language/nano"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument("--lr", type=float, default=0.02, help="Muon's; AdamW takes a fifth of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grams", action="store_true", help="only write grams.xz, of the model in --out")
    args = parser.parse_args()

    documents, characters = libdocs_documents()
    libdocs = split_by_hash(documents, validation=0.02, test=0.02)
    if args.grams:
        write_grams(args.out, libdocs["train"])
        return
    pydoc = split_by_hash(pydoc_documents(), validation=0.1, test=0.1)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(libdocs["train"], args.vocabulary, 1024)
    train, train_bytes = encode(tokenizer, libdocs["train"])
    held_out = {"libdocs": encode(tokenizer, libdocs["validation"]), "pydoc": encode(tokenizer, pydoc["validation"])}
    print(f"{len(train):,} training tokens, {train_bytes / len(train):.2f} bytes each", flush=True)

    config = LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=192, intermediate_size=512, num_hidden_layers=args.layers,
        num_attention_heads=3,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=1024, rope_theta=10000.0, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.01, momentum=0.95)
    adamw = torch.optim.AdamW(others, lr=args.lr / 5, betas=(0.9, 0.95), weight_decay=0.0)

    windows = (len(train) - 1) // args.context
    generator = torch.Generator().manual_seed(args.seed)
    steps = int(args.tokens // (args.batch * args.context))
    order = torch.cat(
        [torch.randperm(windows, generator=generator) for _ in range(math.ceil(steps * args.batch / windows))]
    )
    compiled = torch.compile(model)
    started, losses, history = time.time(), [], []
    for step in range(steps):
        scale = min((step + 1) / 100, 1.0) * min(
            1.0, 2.0 * (1 - step / steps)
        )  # warm-up, constant, linear decay over the last half
        for group in muon.param_groups:
            group["lr"] = args.lr * scale
        for group in adamw.param_groups:
            group["lr"] = args.lr / 5 * scale
        starts = order[step * args.batch : (step + 1) * args.batch] * args.context
        ids = torch.stack([train[s : s + args.context] for s in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adamw.step()
        model.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            rate = (step + 1) * args.batch * args.context / (time.time() - started)
            print(f"step {step + 1}/{steps}  loss {sum(losses[-50:]) / 50:.3f}  {rate:,.0f} tokens/s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            scores = {
                name: bits_per_byte(model, stream, size, args.context, 100_000)
                for name, (stream, size) in held_out.items()
            }
            history.append(
                {
                    "step": step + 1,
                    "tokens": (step + 1) * args.batch * args.context,
                    "loss": sum(losses[-50:]) / 50,
                    **scores,
                }
            )
            print("  validation, bits per byte: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
            save(model, tokenizer, args, history, characters, libdocs, len(train), time.time() - started)


def write_grams(out: Path, documents: list[str]) -> None:
    """The sampled 13-grams of the training text beside the model. Only of the very text: with other packages installed
    its digest is another."""
    corpus = json.loads((out / "training_record.json").read_text())["corpus"]
    if (found := text_digest(documents)) != corpus["digest"]:
        installed = ", ".join(f"{package} {version(package)} ({was})" for package, was in corpus["versions"].items())
        raise SystemExit(f"libdocs is {found} here, nano's was {corpus['digest']}; installed (then): {installed}")
    hashes = all_grams(documents)
    kept = write_sample(out / NANO.name, hashes)
    size = (out / NANO.name).stat().st_size
    print(f"{len(hashes):,} different 13-grams, {kept:,} kept, wrong for {kept / 2**32:.1e} of others, {size:,} bytes")


def save(model, tokenizer, args, history, characters, libdocs, train_tokens, seconds) -> None:  # type: ignore[no-untyped-def]
    args.out.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    record = {
        "command": f"python scripts/pretrain_nano.py --tokens {args.tokens:g} --layers {args.layers} "
f"--vocabulary {args.vocabulary} --context {args.context} "
        f"--batch {args.batch} --lr {args.lr:g} --seed {args.seed}",
        "corpus": {
            "name": "libdocs", "split": "train", "documents": len(libdocs["train"]), "tokens": train_tokens,
            "digest": text_digest(libdocs["train"]),
            "characters": characters,
            "versions": {p: version(p) for p in ("numpy", "scipy", "torch", "transformers", "qiskit", "pennylane")},
        },
        "validation_bits_per_byte": history, "seconds": round(seconds), "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip
    (args.out / "training_record.json").write_text(json.dumps(record, indent=1) + "\n")
    write_grams(args.out, libdocs["train"])


if __name__ == "__main__":
    main()
