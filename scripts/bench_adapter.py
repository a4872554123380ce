"""The adapter layer beside PEFT's OFT (exact Cayley) and the bare frozen layer, forward and backward, ratios of one
run.

    python scripts/bench_adapter.py            576 -> 576, 2,048 tokens, float32 (one SmolLM2 site)
    python scripts/bench_adapter.py --out 192  v_proj

Each row interleaves the candidates round by round and reports the median of the per-round ratios, so that a busy
machine slows all alike.
"""

import argparse
import statistics
import time

import peft
import torch

from qrun.adapters.linear import AdaptedLinear
from qrun.config.schema import Side


class Net(torch.nn.Module):
    """A single projection, as PEFT wants it: a named child."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.lin = linear

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.lin(x)


def seconds(module, x, upstream, backward):  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    if backward:
        module(x).backward(upstream)
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None
    else:
        with torch.no_grad():
            module(x)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--out", type=int, default=576)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(1, args.tokens, args.width, requires_grad=True)
    upstream = torch.randn(1, args.tokens, args.out)
    print(
        f"{args.width} -> {args.out}, {args.tokens} tokens, float32, {torch.get_num_threads()} threads, "
        f"{args.rounds} rounds, medians"
    )
    print(
        f"{'b':>3}  {'pass':<16} {'frozen ms':>9} {'qrun ms':>8} {'OFT ms':>8} {'qrun/frozen':>12} "
        f"{'OFT/frozen':>11} {'qrun/OFT':>9}"
    )
    for dim in (4, 8, 16, 32, 64):
        frozen = torch.nn.Linear(args.width, args.out, bias=False).requires_grad_(False)
        ours = AdaptedLinear(torch.nn.Linear(args.width, args.out, bias=False), dim, Side.input, False)
        config = peft.OFTConfig(oft_block_size=dim, r=0, use_cayley_neumann=False, target_modules=["lin"])
        theirs = peft.get_peft_model(Net(torch.nn.Linear(args.width, args.out, bias=False)), config)
        ours.trained.data.normal_(0, 0.1)
        for backward in (False, True):
            rounds = [
                [seconds(m, x, upstream, backward) for m in (frozen, ours, theirs)] for _ in range(args.rounds + 5)
            ][5:]
            f, q, o = (statistics.median(column) * 1e3 for column in zip(*rounds, strict=True))
            ratio = [statistics.median(r[i] / r[j] for r in rounds) for i, j in ((1, 0), (2, 0), (1, 2))]
            print(
                f"{dim:>3}  {'forward+backward' if backward else 'forward':<16} {f:9.2f} {q:8.2f} {o:8.2f} "
                f"{ratio[0]:12.2f} {ratio[1]:11.2f} {ratio[2]:9.2f}"
            )


if __name__ == "__main__":
    main()
