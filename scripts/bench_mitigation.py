"""What mitigation packages make of block circuits beside this project's own estimates: the same noise, circuits and
number of shots. One run, side by side.

    pip install mitiq mthree ply             in an environment of its own: mitiq 1.1.0 asks for numpy < 2.3, pandas < 3
    python scripts/bench_mitigation.py       b = 4 and 8, 16 blocks of 50 slices
    python scripts/bench_mitigation.py --blocks 4 --slices 10

Written for mitiq 1.1.0 and mthree 3.0.0; rows of a package that is missing are left out, and the last line says so.

Blocks are Cayley maps of random K at the distance |Q - 1|_F = 0.11 sqrt(b) of trained ones, slices x are isotropic,
the noise is heron_r2 (gates, relaxation while qubits wait, readout), circuits are written for a line. Every way has
8,192 shots a slice, calibration aside. The error is sqrt(mean |y - Q x|^2 / |x|^2) over blocks and slices, its 95 %
interval a bootstrap over blocks. Ways that give magnitudes alone get the signs of Q x (a control: magnitudes are
compared) and the signs of x (the paper's rule).

    sqrt           sqrt(f) of frequencies f, the paper's rule
    calibrated     qrun/quantum/estimates.py: M^-1 f, less the depolarising rate, nearest distribution, sqrt
    two settings   the same from half the shots each, with signs of its own
    M3             M3Mitigation (Nation et al., PRX Quantum 2, 040326), balanced calibration on Aer,
                   quasi-probabilities, nearest_probability_distribution, sqrt; "+ rate" takes estimates.py's
                   depolarising rate, fitted to known slices, out of the quasi-probabilities
    mitiq REM      mitiq.rem.mitigate_measurements with the counted readout matrices; it returns bitstrings drawn anew
                   from the mitigated distribution. "no resampling" is that distribution itself
    mitiq ZNE      mitiq's fold_global (Giurgica-Tiron et al., arXiv:2005.10921), shots divided among factors, and
                   LinearFactory or RichardsonFactory (Temme et al., PRL 119, 180509) on every outcome's probability;
                   nearest distribution, sqrt. "+ REM" inverts readout at each factor first, without resampling

mitiq extrapolates expectation values, and a slice needs a distribution: its `extrapolate` is called for each outcome on
the same counts, in the place of execute_with_zne. Folded circuits come back from mitiq with sx^-1, which is rz(pi) sx
rz(pi) and has the noise of an sx; they run on Aer's density matrix with the noise of `device=aer`, and the counts are
drawn from its probabilities. The last lines compare factor 1 with `device=noisy`.

Columns: circuits a slice; calibration in circuits of 8,192 shots, once and for each block; CPU microseconds a slice of
the estimate, from counts to magnitudes or y, and of folding, on one thread. This project's estimates take slices in
arrays, the packages one by one.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from qrun.adapters.cayley import cayley
from qrun.adapters.executor import CircuitExecutor, Ready, SiteExecutor
from qrun.config.devices import EstimateConfig, Estimator, Sign
from qrun.config.tree import option
from qrun.quantum.circuits import Circuits, from_circuit, to_qiskit
from qrun.quantum.devices.aer import AerDevice, noise_model
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.estimates import REPEATS, SLICES, Rates, fitted, known_slices, magnitudes, with_signs
from qrun.quantum.gates import BASIS, RZ
from qrun.quantum.noise import Noise
from qrun.quantum.sampling import sample, stream_key
from qrun.quantum.wiring import Wiring

Floats = NDArray[np.float64]
SHOTS, DISTANCE, SEED, RESAMPLES = 8192, 0.11, 0, 2000
PACKAGES = ("mitiq", "mthree", "ply")  # mitiq reads Qiskit circuits with ply
FACTORS = {"linear": (1, 3), "Richardson": (1, 2, 3)}


@dataclass
class Row:
    """One way: magnitudes [S, B, b], or estimates with signs of their own."""

    way: str
    size: Floats | None = None
    own: Floats | None = None
    circuits: int = 0
    calibration: tuple[float, float] = (0, 0)  # once, and for each block
    microseconds: float | None = None
    folding: float | None = None


def near_identity(dim: int, count: int) -> Floats:
    """Blocks [B, b, b] of random K, each scaled until |Q - 1|_F = DISTANCE sqrt(b)."""
    k = torch.randn(count, dim * (dim - 1) // 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    for _ in range(50):
        q = cayley(k, dim)
        k *= DISTANCE * dim**0.5 / torch.linalg.matrix_norm(q - torch.eye(dim))[:, None]
    return q.numpy()


class Case:
    """Blocks and slices of one b, and the counts that all ways of one circuit share."""

    def __init__(self, dim: int, blocks: int, slices: int) -> None:
        self.dim, self.q = dim, near_identity(dim, blocks)
        self.qubits = dim.bit_length() - 1
        x = np.random.default_rng(SEED).normal(size=(slices, blocks, dim))
        self.x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        self.truth = np.einsum("jab,njb->nja", self.q, self.x)
        self.mask, self.numbers = np.ones(x.shape[:2], bool), np.arange(slices)
        self.wiring = Wiring(option("noise", "heron_r2", Noise))
        self.device = NoisyDevice(self.wiring, SHOTS, np.float64)
        self.circuits: Circuits = self.wiring.circuits(self.q)

    def site(self, device: NoisyDevice, kind: Estimator, sign: Sign) -> tuple[SiteExecutor, Ready, list[Floats]]:
        """This project's executor and what its circuits counted: the same counts for the same device."""
        site = CircuitExecutor(device, sign, SEED, estimate=EstimateConfig(kind)).site("bench")
        ready = site.prepare(torch.from_numpy(self.q))
        return site, ready, site.run(ready, self.x, self.mask, self.numbers)

    @cached_property
    def frequencies(self) -> Floats:
        return self.site(self.device, Estimator.sqrt, Sign.exact)[2][0]

    @cached_property
    def confusion(self) -> Floats:
        """Counted readout matrices [B, n, 2, 2], those of `calibrated`."""
        return self.device.confusion(self.device.prepare(self.q), self.dim, REPEATS * SHOTS)

    @cached_property
    def exact(self) -> Floats:
        """Probabilities [S, B, b] without shots, of the fast simulator."""
        device = NoisyDevice(self.wiring, None, np.float64)
        return device.run(device.prepare(self.q), self.x, self.mask, 0, self.numbers)


def timed(call: Callable[[], Any], slices: int, times: int = 1) -> tuple[Any, float]:
    """What a call returns, and the least CPU microseconds a slice."""
    spent = []
    for _ in range(times):
        started = time.process_time()
        found = call()
        spent.append(time.process_time() - started)
    return found, min(spent) / slices * 1e6


def nearest(p: Floats) -> Floats:
    """sqrt of the nearest distributions."""
    none = Rates(np.broadcast_to(np.eye(2), (p.shape[1], p.shape[2].bit_length() - 1, 2, 2)), np.ones(p.shape[1]))
    return magnitudes(p, none)


def without_device(case: Case) -> list[Row]:
    quiet = NoisyDevice(Wiring(Noise()), SHOTS, np.float64)
    counted = case.site(quiet, Estimator.sqrt, Sign.exact)[2][0]
    return [
        Row("y = x, no device", own=case.x),
        Row("|Qx| exact, no device", np.abs(case.truth)),
        Row("sqrt, no noise", np.sqrt(counted), circuits=1),
    ]


def ours(case: Case) -> list[Row]:
    """This project's estimates through its executor."""
    rows, count = [], case.mask.size
    halves = NoisyDevice(case.wiring, SHOTS // 2, np.float64)
    for way, device, kind, sign, calibration in (
        ("sqrt", case.device, Estimator.sqrt, Sign.exact, (0, 0)),
        ("calibrated", case.device, Estimator.calibrated, Sign.exact, (2 * REPEATS, SLICES)),
        ("calibrated, two settings", halves, Estimator.calibrated, Sign.two_settings, (REPEATS, SLICES)),
    ):
        site, ready, counted = case.site(device, kind, sign)
        y, spent = timed(lambda s=site, r=ready, c=counted: s.estimates(r, c, case.x, case.truth), count, 5)
        signed = {"own": y} if sign is Sign.two_settings else {"size": np.abs(y)}
        rows.append(Row(way, **signed, circuits=len(counted), calibration=calibration, microseconds=spent))
    return rows


def m3(case: Case) -> list[Row]:
    from mthree import M3Mitigation
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import ReadoutError

    model = noise_model(case.wiring.noise)
    model.add_all_qubit_readout_error(ReadoutError(np.array(case.wiring.noise.confusion).T))
    backend = AerSimulator(noise_model=model, method="density_matrix", n_qubits=case.qubits, seed_simulator=SEED)
    mitigation = M3Mitigation(backend)
    jobs = mitigation.cals_from_system(range(case.qubits), REPEATS * SHOTS, method="balanced", async_cal=False)
    once = sum(result.shots for job in jobs for result in job.result().results) / SHOTS
    key = stream_key(SEED, "known")
    known = known_slices(*case.q.shape[:2])
    every, numbers = np.ones(known.shape[:2], bool), np.arange(SLICES)
    seen = case.device.run(case.device.prepare(case.q), known, every, key, numbers)

    def quasi(frequencies: Floats) -> list[list[Any]]:
        """M3's answers [S][B] to counts."""
        names = [f"{k:0{case.qubits}b}" for k in range(case.dim)]
        counts = [
            [{a: int(c) for a, c in zip(names, row, strict=True) if c} for row in rows]
            for rows in np.rint(frequencies * SHOTS)
        ]
        wires = case.circuits.wires.tolist()
        return [[mitigation.apply_correction(c, wires[j]) for j, c in enumerate(row)] for row in counts]

    def dense(found: Sequence[Sequence[dict[str, float]]]) -> Floats:
        out = np.zeros((len(found), len(found[0]), case.dim))
        for i, row in enumerate(found):
            for j, probabilities in enumerate(row):
                for name, p in probabilities.items():
                    out[i, j, int(name, 2)] = p
        return out

    def plain() -> Floats:
        return np.sqrt(dense([[p.nearest_probability_distribution() for p in row] for row in quasi(case.frequencies)]))

    expected = np.square(np.einsum("jab,njb->nja", case.q, known))
    nothing = np.broadcast_to(np.eye(2), (len(case.q), case.qubits, 2, 2))
    rates = fitted(dense(quasi(seen)), expected, nothing, SHOTS)
    size, spent = timed(plain, case.mask.size, 3)
    less, more = timed(lambda: magnitudes(dense(quasi(case.frequencies)), rates), case.mask.size, 3)
    return [
        Row("M3", size, circuits=1, calibration=(once, 0), microseconds=spent),
        Row("M3 + rate", less, circuits=1, calibration=(once, SLICES), microseconds=more),
    ]


def inverses(case: Case) -> list[Floats]:
    """mitiq's inverse readout matrix of each block, the highest bit first."""
    from mitiq.rem import generate_tensored_inverse_confusion_matrix

    return [generate_tensored_inverse_confusion_matrix(case.qubits, list(tables[::-1])) for tables in case.confusion]


def readout(case: Case) -> list[Row]:
    from mitiq import MeasurementResult
    from mitiq.rem import bitstrings_to_probability_vector, mitigate_measurements
    from mitiq.rem.inverse_confusion_matrix import closest_positive_distribution

    inverse, names = inverses(case), [[k >> i & 1 for i in reversed(range(case.qubits))] for k in range(case.dim)]
    counts = np.rint(case.frequencies * SHOTS).astype(int)
    drawn, kept = np.empty_like(case.x), np.empty_like(case.x)
    np.random.seed(SEED)  # mitiq draws from the global generator
    spent = np.zeros(2)
    for i, j in np.ndindex(case.mask.shape):
        measured = MeasurementResult([name for name, c in zip(names, counts[i, j], strict=True) for _ in range(c)])
        found, first = timed(lambda m=measured, j=j: mitigate_measurements(m, inverse[j]), 1)
        drawn[i, j] = bitstrings_to_probability_vector(found.result)
        frequencies = case.frequencies[i, j]
        kept[i, j], second = timed(lambda f=frequencies, j=j: closest_positive_distribution(inverse[j] @ f), 1)
        spent += first, second
    ways = (("mitiq REM", drawn), ("mitiq REM, no resampling", kept))
    return [
        Row(way, np.sqrt(np.maximum(p, 0)), circuits=1, calibration=(2 * REPEATS, 0), microseconds=us)
        for (way, p), us in zip(ways, spent / case.mask.size, strict=True)
    ]


def folded(case: Case, factor: int) -> tuple[Floats, float]:
    """Probabilities [S, B, b] of circuits that mitiq folded, and microseconds a slice of folding."""
    from mitiq.zne.scaling import fold_global
    from qiskit import transpile

    out, spent = np.empty_like(case.x), 0.0
    places, preparation = case.wiring.places(case.qubits), case.wiring.preparations(case.qubits)[0]
    for j in range(len(case.q)):
        angles = preparation.angles(case.x[:, j])
        bound = [to_qiskit(case.circuits, j, row, measure=False) for row in angles]
        found, each = timed(lambda bound=bound: [fold_global(circuit, factor) for circuit in bound], len(bound))
        spent += each / len(case.q)
        plain = transpile(found, basis_gates=list(BASIS[:4]), optimization_level=0)
        tables = np.array([from_circuit(circuit) for circuit in plain])  # fails unless all slices fold alike
        assert (tables[:, :, :3] == tables[0, :, :3]).all()
        kind, first, second = tables[0, :, :3].T.astype(np.int8)
        turns = np.flatnonzero(kind == RZ)
        parameter = np.full(len(kind), -1, np.int16)
        parameter[turns] = np.arange(len(turns))
        wires, ends, shape = case.circuits.wires[[j]], np.array([0, len(kind)]), np.zeros(1, np.int64)
        one = Circuits(case.qubits, shape, wires, ends, ends[1:], kind, first, second, np.zeros(len(kind)), parameter)
        read = AerDevice(case.wiring, None)._aer(one, 0, tables[:, turns, 3], places)
        out[:, j] = places.measured(read, one, 0)
    return out, spent


def extrapolation(case: Case, notes: list[str]) -> list[Row]:
    from mitiq.zne.inference import LinearFactory, RichardsonFactory

    found = {factor: folded(case, factor) for factor in sorted({f for factors in FACTORS.values() for f in factors})}
    off = np.abs(found[1][0] - case.exact).max()
    notes.append(f"b = {case.dim}: factor 1 by mitiq and Aer against device=noisy, largest difference {off:.1e}")
    rows, inverse = [], inverses(case)
    for name, factory in (("linear", LinearFactory), ("Richardson", RichardsonFactory)):
        factors = FACTORS[name]
        divided = [SHOTS // len(factors) + (i < SHOTS % len(factors)) for i in range(len(factors))]
        counted = [
            sample(found[factor][0], shots, stream_key(SEED, f"{name}/{factor}"), case.numbers)
            for factor, shots in zip(factors, divided, strict=True)
        ]
        for rem in (False, True):

            def estimate(counted=counted, factory=factory, factors=factors, rem=rem) -> Floats:
                p = np.empty_like(case.x)
                for i, j in np.ndindex(case.mask.shape):
                    seen = [inverse[j] @ f[i, j] if rem else f[i, j] for f in counted]
                    for k in range(case.dim):
                        p[i, j, k] = factory.extrapolate(factors, [float(f[k]) for f in seen])
                return nearest(p)

            size, spent = timed(estimate, case.mask.size)
            way = f"mitiq ZNE {name} {factors}{' + REM' if rem else ''}".replace(", ", ",")
            folding = sum(found[factor][1] for factor in factors)
            once = (2 * REPEATS * rem, 0)
            rows.append(Row(way, size, None, len(factors), once, spent, folding))
    return rows


def interval(y: Floats | None, truth: Floats) -> str:
    """Error in percent with its interval over blocks."""
    if y is None:
        return "-"
    squares = np.square(y - truth).sum(-1).mean(0)
    drawn = np.random.default_rng(SEED).integers(len(squares), size=(RESAMPLES, len(squares)))
    low, high = np.sqrt(np.percentile(squares[drawn].mean(1), [2.5, 97.5]))
    return f"{100 * squares.mean() ** 0.5:5.2f} [{100 * low:5.2f}, {100 * high:5.2f}]"


def line(case: Case, row: Row) -> str:
    by_truth, by_x = (None if row.size is None else with_signs(row.size, s) for s in (case.truth, case.x))
    errors = " ".join(f"{interval(y, case.truth):>20}" for y in (by_truth, by_x, row.own))
    once, each = row.calibration
    used = (f"{once:g}" + (f"+{each:g}/block" if each else "")) if once or each else "-"
    spent = ("-" if us is None else f"{us:.2f}" if us < 10 else f"{us:,.0f}" for us in (row.microseconds, row.folding))
    shots = f"{SHOTS:,}" if row.circuits else "-"
    tail = "{:>8} {:>8}".format(*spent)
    return f"{case.dim} {row.way:34} {errors} {shots:>6} {row.circuits or '-':>4} {used:>11} {tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--slices", type=int, default=50)
    words = parser.parse_args()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    used = ("numpy", "qiskit", "qiskit-aer", *(name for name in PACKAGES if name not in missing))
    print(f"heron_r2, line, {words.blocks} blocks x {words.slices} slices; "
          + ", ".join(f"{name} {version(name)}" for name in used))  # fmt: skip
    heads = ("error %, signs of Qx", "signs of x", "own signs")
    print(f"b {'way':34} " + " ".join(f"{head:>20}" for head in heads)
          + f" {'shots':>6} {'circ':>4} {'calibration':>11} {'us':>8} {'us fold':>8}")  # fmt: skip
    notes: list[str] = []
    for dim in words.dims:
        case = Case(dim, words.blocks, words.slices)
        ways = [without_device, ours]
        ways += [] if "mthree" in missing else [m3]
        ways += [] if "mitiq" in missing else [readout]
        ways += [] if {"mitiq", "ply"} & set(missing) else [lambda case: extrapolation(case, notes)]
        for way in ways:
            for row in way(case):
                print(line(case, row), flush=True)
    for note in notes:
        print(note)
    if missing:
        print(f"missing: {', '.join(missing)}; rows that need them are left out (pip install {' '.join(missing)})")


if __name__ == "__main__":
    main()
