"""What a training step and an evaluation cost beside the plain way: CPU time of all threads, one process.

    python scripts/bench_steps.py [--case nano-one ...] [--rounds 5] [--threads 1]

Candidates take turns in every round and the least of their times counts, so that other work on the machine hurts all
alike. `plain` is float32, the whole model and all logits of a batch in one table (evaluation: tiles of 2^26 numbers);
`pieces` makes the loss and its gradient piece by piece, `trunk` reads what is below the first adapted layer from the
cache, `bf16` is model.dtype=bfloat16. OFT and LoRA are PEFT's layers at the same sites, in the plain way. SmolLM2's
shape has random weights: times do not depend on them.
"""

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from qrun.adapters.methods import spec
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, ModelConfig
from qrun.config.tree import option
from qrun.evaluation import perplexity
from qrun.evaluation.trunk import Trunk, last_hidden, open_trunk
from qrun.language.models import load, read_shape
from qrun.training.losses import Hidden, window_loss


@dataclass(frozen=True)
class Case:
    """A model, its sites, and windows [batch, tokens + 1]."""

    model: str
    layers: str
    projections: str
    batch: int
    tokens: int


CASES = {
    "nano-one": Case("nano", "last", "v_proj", 8, 511),
    "nano-all": Case("nano", "all", "all", 8, 511),
    "smollm2-one": Case("smollm2", "last", "v_proj", 1, 511),
    "smollm2-all": Case("smollm2", "all", "all", 1, 255),
}
WAYS = {
    "plain": ("cayley", False, False, False), "pieces": ("cayley", True, False, False),
    "trunk": ("cayley", True, True, False), "bf16": ("cayley", True, False, True),
    "bf16 trunk": ("cayley", True, True, True), "OFT": ("oft", False, False, False),
    "LoRA r=2": ("lora", False, False, False),
}  # fmt: skip  # method, pieces, trunk, bf16
TILE = 2**26


def opened(name: str) -> Any:
    """The frozen model."""
    if name == "nano":
        return load(ModelConfig(name="nano", embedded=True, device="cpu")).model
    shape = option("model", name, ModelConfig).shape
    torch.manual_seed(0)
    values = shape if isinstance(shape, dict) else vars(shape)
    return LlamaForCausalLM(LlamaConfig(**values, tie_word_embeddings=True)).requires_grad_(False).eval()


def plain_loss(model: Any, ids: Tensor) -> Tensor:
    """Mean cross-entropy from one table of logits."""
    return cross_entropy(model.lm_head(last_hidden(model, ids[:, :-1])).float().flatten(0, 1), ids[:, 1:].flatten())


def ways(case: Case) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Step and evaluation of every way."""
    base = opened(case.model)
    ids = torch.randint(0, base.config.vocab_size, (case.batch, case.tokens + 1))
    found = {}
    for name, (method, pieces, kept, half) in WAYS.items():
        config = AdapterConfig(method, 4, rank=2, projections=case.projections, layers=case.layers)
        chosen = select(
            sites(read_shape({**base.config.to_dict(), "architectures": ["LlamaForCausalLM"]})),
            config.projections,
            config.layers,
        )
        layer = chosen[0].layer
        if kept and not layer:
            continue
        model = copy.deepcopy(base).to(torch.bfloat16 if half else torch.float32)
        adapter = spec(method).attach(model, chosen, config, "")
        optimizer = torch.optim.AdamW(adapter.tensors().values(), lr=1e-3)
        trunk = open_trunk(model, layer, name, (case.batch, case.tokens), 8.0, lambda _: None) if kept else None
        found[name] = candidate(model, ids, optimizer, pieces, trunk)
    return found


def candidate(
    model: Any, ids: Tensor, optimizer: torch.optim.Optimizer, pieces: bool, trunk: Trunk | None
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Step and evaluation of one way."""

    def kept(model: Any, inputs: Tensor) -> Tensor:
        assert trunk is not None
        return trunk.hidden(model, inputs, range(len(inputs)))

    run: Hidden = last_hidden if trunk is None else kept

    def step() -> None:
        loss = window_loss(model, ids, None, 0.0, 1.0, run)[0] if pieces else plain_loss(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def evaluation() -> None:
        perplexity.LOGITS = own if pieces else TILE
        perplexity.token_losses(model, run(model, ids[:, :-1]), ids[:, 1:])
        perplexity.LOGITS = own

    own = perplexity.LOGITS
    return step, evaluation


def seconds(call: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, {args.rounds} rounds, least CPU seconds and their share of plain")
    for name in args.case:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            candidates = ways(case)
            rounds = [
                {way: [seconds(call) for call in calls] for way, calls in candidates.items()}
                for _ in range(args.rounds + 1)
            ][1:]  # the first round fills the cache and warms the threads
        print(f"\n{name}: {case.batch} x {case.tokens} tokens")
        least = {way: [min(r[way][i] for r in rounds) for i in (0, 1)] for way in candidates}
        for way, (step, evaluation) in least.items():
            shares = [value / plain for value, plain in zip((step, evaluation), least["plain"], strict=True)]
            print(f"{way:<12} step {step:7.3f} s {shares[0]:5.2f}   evaluation {evaluation:7.3f} s {shares[1]:5.2f}")


if __name__ == "__main__":
    main()
