"""Circuits per second of the fast noisy simulator beside Aer and default.mixed, and what circuits cost an evaluation at
SmolLM2's shape. One run, side by side.

    python scripts/bench_circuits.py             throughput at n = 1..5 with the arithmetic and memory limits beside it
    python scripts/bench_circuits.py --smollm2   noiseless and noisy evaluation of a random model of SmolLM2-135M's
                                                 shape, one v_proj and all 210 sites

Limits: arithmetic is the count of multiply-adds of the kernel over the machine's float32 rate, memory the bytes of
slices, probabilities and readout matrices that must move over the machine's copy rate; both rates are measured here,
with the same threads.
"""

import argparse
import time

import numpy as np
import torch
from scipy.stats import special_ortho_group

from qrun.quantum.devices.aer import AerDevice
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.devices.pennylane import PennyLaneDevice
from qrun.quantum.noise import Noise
from qrun.quantum.wiring import Wiring

NOISE = Noise("bench", sx=1.5e-4, cz=2.25e-3, read_1_given_0=0.01, read_0_given_1=0.01)


def best(call, times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def multiply_adds(n: int) -> int:
    """Of one circuit: RY (about 5 per group of four strings), CZ (about 12 per sixteen), readout matrix."""
    total = 4**n * 2**n
    for level in range(n):
        total += 2**level * 5 * 4**level + (2**level - 1) * 12 * 4**level // 4
    return total


def machine() -> tuple[float, float]:
    """float32 multiply-adds per second of a matrix product, and bytes per second of a copy."""
    a = torch.randn(1536, 1536)
    flops = 1536**3 / best(lambda: a @ a, 5)
    x = torch.zeros(2**26)
    y = torch.empty_like(x)
    return flops, 2 * x.numel() * 4 / best(lambda: y.copy_(x), 5)


def throughput() -> None:
    rate, copy = machine()
    print(
        f"{torch.get_num_threads()} threads; {rate / 1e9:.0f} G multiply-adds/s, copy {copy / 1e9:.1f} GB/s; "
        f"circuits/s, depolarising and readout noise"
    )
    heads = (
        "exact p",
        "8192 shots",
        "float64 p",
        "Aer save_p",
        "d.mixed",
        "x Aer",
        "x d.mixed",
        "limit flop",
        "limit memory",
        "of limit",
    )
    print(" n " + " ".join(f"{head:>13}" for head in heads))
    for n, tokens, blocks in ((1, 40000, 64), (2, 40000, 64), (3, 20000, 64), (4, 4000, 32), (5, 1000, 16)):
        dim = 2**n
        q = special_ortho_group.rvs(dim, size=blocks, random_state=0).reshape(blocks, dim, dim)
        x = np.random.default_rng(0).normal(size=(tokens, blocks, dim)).astype(np.float32)
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        mask, numbers = np.ones(x.shape[:2], bool), np.arange(tokens)
        rates = []
        for shots, dtype in ((None, np.float32), (8192, np.float32), (None, np.float64)):
            device = NoisyDevice(Wiring(NOISE), shots, dtype)
            prepared = device.prepare(q)
            device.run(prepared, x[:64], mask[:64], 0, numbers[:64])
            rates.append(
                tokens * blocks / best(lambda d=device, p=prepared, x=x, m=mask, k=numbers: d.run(p, x, m, 0, k))
            )
        slow = []
        for make, count in (
            (AerDevice, 2000 >> 2 * max(0, n - 2)),
            (PennyLaneDevice, {1: 2048, 2: 512, 3: 128, 4: 8, 5: 1}[n]),
        ):
            device = make(Wiring(NOISE), None)
            prepared = device.prepare(q[:1])
            slow.append(
                count
                / best(
                    lambda d=device, p=prepared, c=count, x=x, m=mask, k=numbers: d.run(
                        p, x[:c, :1], m[:c, :1], 0, k[:c]
                    ),
                    2,
                )
            )
        arithmetic, memory = rate / multiply_adds(n), copy / (2 * dim * 4)
        counts = [*rates, *slow, rates[0] / slow[0], rates[0] / slow[1], arithmetic, memory]
        print(
            f"{n:>2} " + " ".join(f"{c:13,.0f}" for c in counts) + f" {rates[0] / min(arithmetic, memory):13.1%}",
            flush=True,
        )


def evaluation() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from qrun.adapters.executor import CircuitExecutor
    from qrun.adapters.linear import attach, detach
    from qrun.adapters.sites import select, sites
    from qrun.config.devices import Sign
    from qrun.config.schema import AdapterConfig
    from qrun.language.models import read_shape

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    shape = read_shape({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    ids = torch.randint(0, 49152, (1, 512))
    print(
        f"SmolLM2-135M's shape, random weights, 512 tokens, float32, {torch.get_num_threads()} threads; ratio "
        f"to the same adapter on device=exact"
    )
    for label, projections, layers, dims in (
        ("one v_proj", ["v_proj"], "last", (4, 8)),
        ("all 210 sites", "all", "all", (4,)),
    ):
        for dim in dims:
            chosen = AdapterConfig(dim=dim, projections=projections, layers=layers)
            adapter = attach(model, select(sites(shape), chosen.projections, chosen.layers), chosen)
            for parameter in adapter.tensors().values():
                parameter.data.normal_(0, 0.05)
            executor = CircuitExecutor(NoisyDevice(Wiring(NOISE), 8192), Sign.input, 0)

            def forward() -> None:
                with torch.no_grad():
                    model(input_ids=ids)

            adapter.set_executor(executor)
            forward()  # synthesis and readout matrices: once per adapter, kept on disk by `qrun`
            on_circuits = {name: module.executor for name, module in adapter.modules.items()}
            seconds = []
            for _ in range(7):
                adapter.set_executor(None)
                plain = best(forward, 1)
                for name, module in adapter.modules.items():
                    module.executor = on_circuits[name]
                seconds.append((plain, best(forward, 1)))
            ratio = np.median([noisy / plain for plain, noisy in seconds])
            plain, noisy = np.median(seconds, axis=0)
            print(
                f"{label:14} b={dim}  exact {plain:.2f} s  noisy, 8,192 shots {noisy:.2f} s  ratio {ratio:.2f}",
                flush=True,
            )
            detach(model, adapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", action="store_true")
    evaluation() if parser.parse_args().smollm2 else throughput()


if __name__ == "__main__":
    main()
