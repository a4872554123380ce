"""Speed beside peers, in one run and one table: circuits, the adapter's layer, training steps, evaluation, growth.

    python scripts/bench.py                  about 20 minutes on two quiet cores; results/bench/README.md and bench.json
    python scripts/bench.py --quick          under three minutes: fewer sizes and rounds
    python scripts/bench.py --only circuits  one group

Everything is measured in CPU seconds of all threads; there is one, or OMP_NUM_THREADS. The candidates of a group take
turns in every round, so that other work on the machine hurts all alike. A rate is the best of the rounds, with the
range over them; "times the first" is by how much the group's first row is faster, by the best rates, with the range of
the ratio over rounds. The limit is what the row's multiply-adds, and for circuits its bytes, allow at the rates of a
matrix product and of a copy, measured here. A peer that is not installed has no row; simulators must agree to 1e-4
before they race.

Each peer is in its fastest form that we know: Aer's density matrix with all slices bound to one circuit at run time,
default.mixed broadcasting, tensorcircuit-ng (jax) compiled and mapped over slices, PEFT's layers as they are injected,
lm-evaluation-harness and plain transformers at the same batch. Weights of SmolLM2's shape are random: times do not
depend on them.
"""

import argparse
import copy
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np
import torch
from scipy.stats import special_ortho_group
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from qrun.adapters.executor import CircuitExecutor
from qrun.adapters.methods import spec
from qrun.adapters.methods.oft import Oft
from qrun.adapters.sites import select, sites
from qrun.cells.keys import Keys
from qrun.cli.reproduce import Stated
from qrun.config.devices import Sign
from qrun.config.schema import AdapterConfig, DataConfig, EvaluationConfig, ModelConfig, ProtocolConfig, ProtocolKind
from qrun.config.tree import option
from qrun.errors import InputError
from qrun.evaluation import perplexity
from qrun.evaluation.protocols import build
from qrun.evaluation.trunk import last_hidden, open_trunk
from qrun.language import corpus
from qrun.language.models import load, read_shape
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.gates import CZ, RZ, SX, X
from qrun.quantum.noise import Noise
from qrun.quantum.wiring import Wiring
from qrun.studies import configure, module
from qrun.training.losses import Hidden, window_loss

NOISE = Noise("bench", sx=1.5e-4, cz=2.25e-3, read_1_given_0=0.01, read_0_given_1=0.01)
SHOTS = 8192
TILE = 2**26  # numbers of the one table of logits of the plain way
for quiet in ("lm_eval", "bitsandbytes"):  # what they say of a model that is there, and of kernels for 4 bits
    logging.getLogger(quiet).setLevel(logging.ERROR)
PACKAGES = ("torch", "numpy", "numba", "transformers", "peft", "qiskit", "qiskit-aer", "pennylane", "tensorcircuit-ng",
            "jax", "lm-eval")  # fmt: skip

WORDS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
WORDS.add_argument("--quick", action="store_true")
WORDS.add_argument("--only", nargs="+", help="groups: circuits, layer, steps, evaluation, growth")
WORDS.add_argument("--rounds", type=int, help="default: 5, or 2 with --quick")
WORDS.add_argument("--out", type=Path, default=Path("results/bench"))
GIVEN = WORDS.parse_args()
THREADS = int(os.environ["OMP_NUM_THREADS"])
QUICK: bool = GIVEN.quick
ROUNDS: int = GIVEN.rounds or (2 if QUICK else 5)


@dataclass(frozen=True)
class Row:
    """A candidate of a race: work a CPU second, and how many times that the first of its group does."""

    group: str
    name: str
    unit: str
    rate: float
    low: float  # over rounds
    high: float
    times: float  # rate of the first over this one
    times_low: float
    times_high: float
    limit: float | None  # of the machine, in the same unit


@dataclass(frozen=True)
class Candidate:
    """What is called in every round, the work that it does, and what the machine allows of it a second."""

    call: Callable[[], object]
    work: float
    limit: float | None = None


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of a call, all threads."""
    started = time.process_time()
    call()
    return time.process_time() - started


def race(group: str, unit: str, candidates: dict[str, Candidate]) -> Iterator[Row]:
    """Warm every candidate once, let them take turns, and tell."""
    for candidate in candidates.values():
        candidate.call()
    spent = np.array([[seconds(c.call) for c in candidates.values()] for _ in range(ROUNDS)])
    rates = np.array([c.work for c in candidates.values()]) / np.maximum(spent, 1e-9)
    ratios = rates[:, :1] / rates
    for at, (name, candidate) in enumerate(candidates.items()):
        own, ratio, best = rates[:, at], ratios[:, at], rates.max(0)
        values = [own.max(), own.min(), own.max(), best[0] / best[at], ratio.min(), ratio.max()]
        row = Row(group, name, unit, *map(float, values), candidate.limit)
        print(f"{group:24} {name:28} {row.rate:14,.5g} {unit}   x {row.times:.3g}", flush=True)
        yield row


@dataclass(frozen=True)
class Machine:
    """Measured rates of this machine, with the threads of the benchmark."""

    multiply_adds: float  # float32 a second, of a matrix product
    bytes: float  # a second, read and written, of a copy

    @classmethod
    def measured(cls) -> "Machine":
        a, x = torch.randn(1536, 1536), torch.zeros(2**26)
        y = torch.empty_like(x)
        product, copied = (min(seconds(call) for _ in range(5)) for call in (lambda: a @ a, lambda: y.copy_(x)))
        return cls(1536**3 / product, 2 * x.numel() * 4 / copied)


def multiply_adds(n: int) -> int:
    """Of one circuit: RY (about 5 per group of four strings), CZ (about 12 per sixteen), readout matrix."""
    total = 4**n * 2**n
    for level in range(n):
        total += 2**level * 5 * 4**level + (2**level - 1) * 12 * 4**level // 4
    return total


def circuits(machine: Machine) -> Iterator[Row]:
    """The kernel and the executor beside density matrices of others."""
    for n in range(1, 4 if QUICK else 6):
        dim, part = 2**n, 16 if QUICK else 1
        tokens, blocks = {1: 40_000, 2: 40_000, 3: 20_000, 4: 4_000, 5: 1_000}[n] // part, {4: 32, 5: 16}.get(n, 64)
        q = special_ortho_group.rvs(dim, size=blocks, random_state=0).reshape(blocks, dim, dim)
        x = np.random.default_rng(0).normal(size=(tokens, blocks, dim)).astype(np.float32)
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        limit = min(machine.multiply_adds / multiply_adds(n), machine.bytes / (2 * dim * 4))
        count = tokens * blocks
        own = NoisyDevice(Wiring(NOISE), None, np.dtype(np.float32))
        found = {"kernel, exact probabilities": Candidate(running(own, q, x), count, limit)}
        counted = NoisyDevice(Wiring(NOISE), SHOTS, np.dtype(np.float32))
        found["kernel, 8,192 shots"] = Candidate(running(counted, q, x), count, limit)
        site = CircuitExecutor(counted, Sign.input, 0).site("bench")
        given, slices = torch.from_numpy(q), torch.from_numpy(x)
        found["executor, 8,192 shots"] = Candidate(lambda s=site, g=given, x=slices: s(g, x), count, limit)
        for name, (make, most) in PEERS.items():
            few = max(1, most >> 2 * n)
            try:
                call = make(q[:1], x[:few, :1])
            except (ImportError, InputError) as error:
                print(f"{name}: no row ({error})")
                continue
            apart = float(np.abs(call() - running(own, q[:1], x[:few, :1])()).max())
            if apart > 1e-4:
                raise SystemExit(f"{name}, n = {n}: probabilities differ by {apart:.2g}; not the same circuits")
            found[name] = Candidate(call, len(x[:few]), limit)
        yield from race(f"circuits, n = {n}", "circuits/s", found)


def running(device: Any, q: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A device on prepared blocks q [B, b, b] and unit slices x [N, B, b]."""
    prepared, mask, numbers = device.prepare(q), np.ones(x.shape[:2], bool), np.arange(len(x))
    return lambda: device.run(prepared, x, mask, 0, numbers)


def aer(q: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    from qrun.quantum.devices.aer import AerDevice

    return running(AerDevice(Wiring(NOISE), None), q, x)


def mixed(q: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    from qrun.quantum.devices.pennylane import PennyLaneDevice

    return running(PennyLaneDevice(Wiring(NOISE), None), q, x)


def tensorcircuit(q: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    """The same gates and Kraus operators as Aer's, in jax."""
    import jax
    import tensorcircuit as tc

    from qrun.quantum.devices.base import Device

    tc.set_backend("jax")
    device: Device = NoisyDevice(Wiring(NOISE), None, np.dtype(np.float64))
    made, n = device.circuits(q, False, None), int(np.log2(x.shape[-1]))
    places = device.places(n)
    waits, _ = places.waits(made)

    def probabilities(angles: Any) -> Any:
        circuit = tc.DMCircuit(n)

        def act(errors: Any, gate: np.ndarray | None = None) -> None:
            """A constant gate and its first error are one operation."""
            for on, operators in errors:
                both = [np.asarray(k) if gate is None else k @ gate for k in operators]
                kraus = [tc.gates.Gate(k.astype(np.complex64).reshape([2] * 2 * len(on))) for k in both]
                circuit.general_kraus(kraus, *(n - 1 - wire for wire in on))
                gate = None

        for g in range(made.offsets[0], made.offsets[1]):
            kind, first, second = made.kind[g], int(made.first[g]), int(made.second[g])
            before, after = places.errors(places.of(0), first, second, waits[g])
            act(before)
            turn = made.angle[g] + (angles[made.parameter[g]] if made.parameter[g] >= 0 else 0.0)
            if kind in CONSTANT:
                act(after, CONSTANT[kind])
            elif kind == RZ:
                circuit.rz(n - 1 - first, theta=turn)
            else:  # RY
                for rotation in (turn + np.pi, np.pi):
                    act(after, CONSTANT[SX])
                    circuit.rz(n - 1 - first, theta=rotation)
        return tc.backend.real(tc.backend.diagonal(circuit.densitymatrix()))

    run = jax.jit(jax.vmap(probabilities))
    angles = device.wiring.preparations(n)[made.shape[0]].angles(x[:, 0]).astype(np.float32)
    return lambda: places.measured(np.asarray(run(angles)), made, 0)[:, None]


CONSTANT = {  # matrices of the gates without an angle
    SX: np.array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2, X: np.array([[0, 1], [1, 0]]), CZ: np.diag([1, 1, 1, -1]),
}  # fmt: skip
PEERS = {  # and the slices that each takes, 4^n fewer of n qubits
    "Aer, density matrix": (aer, 32_000 >> 2 * QUICK),
    "PennyLane, default.mixed": (mixed, 8_192 >> 2 * QUICK),
    "tensorcircuit-ng, jit + vmap": (tensorcircuit, 2_000_000 >> 4 * QUICK),
}


class Neumann(Oft):
    """PEFT's OFT as it comes: the Cayley map by a Neumann series (OFTv2)."""

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        return replace(super().peft_config(config, targets), use_cayley_neumann=True)


WAYS = {  # method, loss in pieces, kept hidden states, bfloat16
    "qrun, kept states": ("cayley", True, True, False), "qrun": ("cayley", True, False, False),
    "qrun, bfloat16, kept states": ("cayley", True, True, True), "qrun, bfloat16": ("cayley", True, False, True),
    "qrun, the plain way": ("cayley", False, False, False), "PEFT OFT, exact": ("oft", False, False, False),
    "PEFT OFT, Neumann": ("neumann", False, False, False), "PEFT LoRA, r = 2": ("lora", False, False, False),
}  # fmt: skip
CASES = {  # model, layers, projections, batch, tokens
    "nano, one site": ("nano", "last", "v_proj", 8, 511), "nano, 42 sites": ("nano", "all", "all", 8, 511),
    "SmolLM2's shape, one site": ("smollm2", "last", "v_proj", 1, 511),
    "SmolLM2's shape, 210 sites": ("smollm2", "all", "all", 1, 255),
}  # fmt: skip


def method(name: str) -> Any:
    return Neumann() if name == "neumann" else spec(name)


def opened(name: str, layers: int | None = None) -> Any:
    """The frozen model, or random weights of its shape."""
    if name == "nano" and layers is None:
        return load(ModelConfig(name="nano", embedded=True, device="cpu")).model
    shape = option("model", name, ModelConfig).shape
    values = dict(shape) if isinstance(shape, dict) else dict(vars(shape))
    torch.manual_seed(0)
    values |= {"num_hidden_layers": layers} if layers else {}
    return LlamaForCausalLM(LlamaConfig(**values)).requires_grad_(False).eval()


def chosen(model: Any, config: AdapterConfig) -> list[Any]:
    """Sites of a model."""
    shape = read_shape({**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    return select(sites(shape), config.projections, config.layers)


def steps(machine: Machine) -> Iterator[Row]:
    """A training step and an evaluation of every way, PEFT's layers at the same sites."""
    for title, (name, layers, projections, batch, tokens) in list(CASES.items())[: 2 if QUICK else 4]:
        base = opened(name)
        ids = torch.randint(0, base.config.vocab_size, (batch, tokens + 1))
        trained, evaluated = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            for way, (of, pieces, kept, half) in WAYS.items():
                config = AdapterConfig(
                    "oft" if of == "neumann" else of, 4, rank=2, projections=projections, layers=layers
                )
                own = chosen(base, config)
                if kept and not own[0].layer:
                    continue
                model = copy.deepcopy(base).to(torch.bfloat16 if half else torch.float32)
                adapter = method(of).attach(model, own, config, "")
                below = own[0].layer
                trunk = open_trunk(model, below, way, (batch, tokens), 8.0, lambda _: None) if kept else None
                calls = step_and_evaluation(model, ids, list(adapter.tensors().values()), pieces, trunk)
                # multiply-adds of a token: forward through what runs, backward (activations alone) to the first site
                per = sum(p.numel() for p in base.model.layers.parameters()) / base.config.num_hidden_layers
                above, head = base.config.num_hidden_layers - below, base.lm_head.weight.numel()
                forward = per * (above if kept else base.config.num_hidden_layers) + head
                limits = [None if half else machine.multiply_adds / w for w in (forward + per * above + head, forward)]
                for found, call, limit in zip((trained, evaluated), calls, limits, strict=True):
                    found[way] = Candidate(call, batch * tokens, limit)
            yield from race(f"step, {title}", "tokens/s", trained)
            yield from race(f"evaluation, {title}", "tokens/s", evaluated)


def step_and_evaluation(
    model: Any, ids: Tensor, parameters: Sequence[Tensor], pieces: bool, trunk: Any
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Of one way; in the plain one all logits stand in one table."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    run: Hidden = last_hidden if trunk is None else lambda m, inputs: trunk.hidden(m, inputs, range(len(inputs)))
    own = perplexity.LOGITS

    def step() -> None:
        if pieces:
            loss = window_loss(model, ids, None, 0.0, 1.0, run)[0]
        else:
            logits = model.lm_head(last_hidden(model, ids[:, :-1])).float()
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def evaluation() -> None:
        perplexity.LOGITS = own if pieces else TILE
        perplexity.token_losses(model, run(model, ids[:, :-1]), ids[:, 1:])
        perplexity.LOGITS = own

    return step, evaluation


class Net(torch.nn.Module):
    """A single projection, as PEFT wants it: a named child."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)  # type: ignore[no-any-return]


def layer(machine: Machine) -> Iterator[Row]:
    """One adapted projection of SmolLM2, 576 -> 576, forward and backward, beside PEFT's and the frozen one."""
    import peft

    from qrun.adapters.linear import AdaptedLinear
    from qrun.config.schema import Side

    width, tokens = 576, 256 if QUICK else 2048
    x, upstream = torch.randn(1, tokens, width, requires_grad=True), torch.randn(1, tokens, width)
    for dim in (4, 8) if QUICK else (4, 8, 16, 32, 64):
        ours = AdaptedLinear(Net(width).lin, dim, Side.input, False)
        ours.trained.data.normal_(0, 0.1)
        own = {"oft_block_size": dim, "r": 0, "target_modules": ["lin"]}
        modules = {
            "qrun": ours,
            "PEFT OFT, exact": peft.get_peft_model(Net(width), peft.OFTConfig(**own, use_cayley_neumann=False)),
            "PEFT OFT, Neumann": peft.get_peft_model(Net(width), peft.OFTConfig(**own, use_cayley_neumann=True)),
            "PEFT LoRA, r = 2": peft.get_peft_model(Net(width), peft.LoraConfig(r=2, target_modules=["lin"])),
            "frozen layer": Net(width).requires_grad_(False),
        }
        limit = machine.multiply_adds / (2 * width * width)

        def both(m: Any) -> None:
            m(x).backward(upstream)
            x.grad = None

        calls = {
            name: Candidate(lambda m=m: [both(m) for _ in range(4)], 4 * tokens, limit) for name, m in modules.items()
        }
        yield from race(f"layer, b = {dim}", "tokens/s", calls)


def evaluation(machine: Machine) -> Iterator[Row]:
    """nano on whole documents, rolling windows, at the same batch: ours, lm-evaluation-harness, plain transformers."""
    language = load(ModelConfig(name="nano", embedded=True, device="cpu"))
    text = corpus.load(DataConfig(name="pydoc", source="pydoc"))
    documents = text.splits["test"][: 6 if QUICK else 22]
    own = replace(text, splits=dict.fromkeys(text.splits, documents))
    task = build(ProtocolConfig(ProtocolKind.lm_eval_wikitext, 512), EvaluationConfig(), own, language.tokenizer, 1024)
    model, scored = language.model, task.scored
    limit = machine.multiply_adds / (
        sum(p.numel() for p in model.model.layers.parameters()) + model.lm_head.weight.numel()
    )
    for batch in (1, 8):
        found = {"qrun": Candidate(lambda b=batch: perplexity.measure(model, task, b), scored, limit)}
        try:
            from lm_eval.api.instance import Instance
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            print(f"lm-evaluation-harness: no row ({error})")
        else:
            tokenizer = copy.deepcopy(language.tokenizer)  # the harness changes its padding
            harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=512, batch_size=batch)
            asked = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(d,), idx=0) for d in documents]
            found["lm-evaluation-harness"] = Candidate(lambda h=harness, a=asked: rolling(h, a), scored, limit)
        found["plain transformers"] = Candidate(lambda b=batch: plain(model, task, b), scored, limit)
        yield from race(f"evaluation, batch {batch}", "tokens/s", found)


def rolling(harness: Any, asked: list[Any]) -> Any:
    """The harness's own windows; its inner bars, which no word of it turns off, are not shown."""
    with redirect_stderr(StringIO()):
        return harness.loglikelihood_rolling(asked, disable_tqdm=True)


@torch.no_grad()
def plain(model: Any, task: Any, batch: int) -> float:
    """The windows in their order, padded, through *ForCausalLM and its own loss."""
    rows, total = task.rows(), 0.0
    for at in range(0, len(rows), batch):
        windows = [p.stream.ids[w.start : w.end] for _, _, p, w in rows[at : at + batch]]
        ids = torch.zeros(len(windows), max(map(len, windows)), dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, label, window, (_, _, _, place) in zip(ids, labels, windows, rows[at : at + batch], strict=True):
            row[: len(window)] = torch.from_numpy(window)
            label[place.first - place.start : len(window)] = row[place.first - place.start : len(window)]
        total += float(model(input_ids=ids, labels=labels, use_cache=False).loss)
    return total


def growth(machine: Machine) -> Iterator[Row]:
    """Forward passes of nano with noisy circuits over tokens, sites, b and shots; noisy beside exact ones at SmolLM2's
    shape; noiseless ones over layers; a study's grid with its keys over seeds. Times the first: that much longer."""
    nano, v_proj, every = opened("nano"), ("v_proj", "all"), ("all", "all")
    axes: dict[str, Sequence[Any]] = {
        "tokens": (128, 256, 512), "sites": (("v_proj", "last"), v_proj, every), "b": (2, 4, 8, 16),
        "shots": (None, 1024, SHOTS, 8 * SHOTS),
    }  # fmt: skip
    for axis, values in axes.items():
        found = {}
        for value in values[:2] if QUICK else values:
            point = {"tokens": 128, "sites": v_proj, "b": 4, "shots": SHOTS, axis: value}
            found[f"{axis} {value}"] = passing(
                nano, *point["sites"], point["b"], noisy(point["shots"]), point["tokens"]
            )
        yield from race(f"growth with {axis}", "passes/s", found)
    if not QUICK:
        smollm2 = opened("smollm2")
        for title, place in (("one v_proj", ("v_proj", "last")), ("210 sites", every)):
            pair = {
                name: passing(smollm2, *place, 4, on, 512) for name, on in (("exact", None), ("noisy", noisy(SHOTS)))
            }
            yield from race(f"SmolLM2's shape, {title}", "passes/s", pair)
    layered = {f"layers {count}": opened("smollm2", count) for count in ((1, 2) if QUICK else (1, 2, 4, 8))}
    ids = torch.randint(0, 1000, (1, 128))
    calls = {name: Candidate(lambda m=model: forward(m, ids), 1) for name, model in layered.items()}
    yield from race("growth with layers", "passes/s", calls)
    grids = {f"seeds {count}": list(range(count)) for count in ((3, 6) if QUICK else (3, 6, 12, 24))}
    planned = {name: Candidate(lambda s=seeds: planning(s), 1) for name, seeds in grids.items()}
    yield from race("growth with cells", "plans/s", planned)


def noisy(shots: int | None) -> CircuitExecutor:
    return CircuitExecutor(NoisyDevice(Wiring(NOISE), shots, np.dtype(np.float32)), Sign.input, 0)


def passing(
    base: Any, projections: str, layers: str, dim: int, on: CircuitExecutor | None, tokens: int
) -> Candidate:  # fmt: skip
    """Forward passes of a copy with an adapter that is not the identity."""
    model, config = copy.deepcopy(base), AdapterConfig(dim=dim, projections=projections, layers=layers)
    adapter = spec("cayley").attach(model, chosen(model, config), config, "")
    for parameter in adapter.tensors().values():
        parameter.data.normal_(0, 0.05)
    adapter.set_executor(on)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens))
    return Candidate(lambda: forward(model, ids), 1)


@torch.no_grad()
def forward(model: Any, ids: Tensor) -> None:
    model(input_ids=ids, use_cache=False)


def planning(seeds: list[int]) -> None:
    """The grid of `sweep dim` and its keys, without files."""
    config, keys = configure("dim", [f"study.seeds={seeds}".replace(" ", "")]), Keys(Stated())
    for cell in module("dim").cells(config, lambda _: None):
        keys.of(cell)


def facts(machine: Machine) -> dict[str, object]:
    """The machine and what ran on it."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": name, "cores": os.cpu_count(), "threads": THREADS, "load": [round(v, 1) for v in os.getloadavg()],
        "vectors": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version(), **asdict(machine),
        "rounds": ROUNDS, "quick": QUICK, "date": time.strftime("%Y-%m-%d"), "versions": versions,
    }  # fmt: skip


def page(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    loads = " and ".join(f"{load[0]:.1f}" for load in (about["load"], about["load_after"]))
    lines = [
        "# Speed beside peers", "",
        f"`scripts/bench.py{' --quick' * about['quick']}`, {about['date']}: {about['cpu']}, {about['cores']} cores, "
        f"{about['vectors']}, {about['threads']} thread(s), load {loads} before and after, {about['rounds']} rounds; "
        f"{about['multiply_adds'] / 1e9:.0f} G multiply-adds/s, copy {about['bytes'] / 1e9:.0f} GB/s. Python "
        f"{about['python']}; {versions}.", "",
        "Work a CPU second, the best of the rounds and the range over them. Times the first: by how much a group's "
        "first row is faster, and the range over rounds. The head of `scripts/bench.py` says how each is measured.", "",
        "| group | what | rate | range | times the first | range | of the machine's limit |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for row in rows:
        share = f"{row.rate / row.limit:.1%} of {row.limit:,.3g}" if row.limit else ""
        lines.append(
            f"| {row.group} | {row.name} | {row.rate:,.4g} {row.unit} | {row.low:,.4g} to {row.high:,.4g} | "
            f"{row.times:,.3g} | {row.times_low:,.3g} to {row.times_high:,.3g} | {share} |"
        )
    return "\n".join(lines) + "\n"


GROUPS = {f.__name__: f for f in (circuits, layer, steps, evaluation, growth)}


def main() -> None:
    unknown = set(GIVEN.only or ()) - GROUPS.keys()
    if unknown:
        WORDS.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    torch.set_num_threads(THREADS)
    machine = Machine.measured()
    about, rows = facts(machine), []
    for group in GIVEN.only or GROUPS:
        rows += list(GROUPS[group](machine))
    about["load_after"] = [round(v, 1) for v in os.getloadavg()]
    GIVEN.out.mkdir(parents=True, exist_ok=True)
    (GIVEN.out / "bench.json").write_text(
        json.dumps({"about": about, "rows": [asdict(r) for r in rows]}, indent=1) + "\n"
    )
    (GIVEN.out / "README.md").write_text(page(about, rows))
    print(f"written to {GIVEN.out}")


if __name__ == "__main__":
    main()
