"""What a run costs on a QPU, before anything is sent.

    circuits per token   blocks of a site / blocks that fit on the chip at once, rounded up, summed over sites
    executions           circuits x shots; a Sampler job takes at most 10 million, sites follow one another, so every
                         site has jobs of its own
    QPU seconds          2 s per job + (repetition delay + circuit time) x executions; IBM's quick form is 2 s + 0.00035
                         s x executions, which is a delay of 250 us and a circuit of 100 us

Both forms are estimates, and IBM calls them so: quantum.cloud.ibm.com/docs/guides/estimate-job-run-time, "Workload
usage", read in November 2026. What a job took is in its metrics. Executions and gates of a job are those of
quantum.cloud.ibm.com/docs/guides/job-limits; older versions of that page say 5 million executions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qrun.quantum.circuits import to_qiskit
from qrun.quantum.wiring import Wiring

EXECUTIONS_PER_JOB = 10_000_000
GATES_PER_JOB = 10_000  # two-qubit gates that pass always; a circuit with more goes alone, and the service decides
JOB_OVERHEAD_S = 2.0
QUICK_S = 0.00035  # seconds per execution, IBM's quick form
REPETITION_DELAY_S = 250e-6
CIRCUIT_S = QUICK_S - REPETITION_DELAY_S  # of a circuit in the quick form
JOBS_PER_MINUTE = 5  # creation limit per user
OPEN_PLAN_S = 600  # per 28 days
SX_S, CZ_S, MEASURE_S = 36e-9, 68e-9, 2.58e-6  # Heron r2 medians


@dataclass(frozen=True)
class Plan:
    """Counts and seconds; `blocks_per_circuit` is the size of the packing."""

    blocks_per_circuit: int
    circuits_per_token: int
    circuits: int
    executions: int
    jobs: int
    qpu_seconds: float
    quick_seconds: float
    one_circuit_per_job_minutes: float  # submission alone, at the job creation limit

    @property
    def open_plan_share(self) -> float:
        return self.quick_seconds / OPEN_PLAN_S

    @property
    def estimate(self) -> float:
        """QPU seconds as the device estimates them before it sends: by the form that gives more."""
        return max(self.quick_seconds, self.qpu_seconds)


def plan(packed: int, blocks_per_site: list[int], tokens: int, shots: int, circuit_seconds: float) -> Plan:
    """Cost of one pass over `tokens` tokens through sites of so many blocks each, `packed` of them at once."""
    per_site = [math.ceil(blocks / packed) for blocks in blocks_per_site]
    circuits = tokens * sum(per_site)
    per_job = max(1, EXECUTIONS_PER_JOB // shots)
    jobs = sum(math.ceil(tokens * count / per_job) for count in per_site)
    executions = circuits * shots
    seconds = JOB_OVERHEAD_S * jobs + (REPETITION_DELAY_S + circuit_seconds) * executions
    quick = JOB_OVERHEAD_S * jobs + QUICK_S * executions
    return Plan(packed, sum(per_site), circuits, executions, jobs, seconds, quick, circuits / JOBS_PER_MINUTE)


@dataclass(frozen=True)
class BlockCost:
    """The circuit of a generic block, prepared and measured, at the places it gets: their number, the mean squared
    error of |Q x| that their noise makes (best, mean and worst place, in shares of |x|), and the mean survival."""

    counts: dict[str, int]
    depth: int
    seconds: float
    places: int
    errors: tuple[float, float, float]
    gate_survival: float
    survival: float  # readout included


def block_cost(wiring: Wiring, n: int) -> BlockCost:
    """Of a wiring with a calibration."""
    assert wiring.calibration is not None
    circuits, chosen = wiring.generic(n, wiring.edges(n)), wiring.chosen(n)
    circuit, counts = to_qiskit(circuits, 0), circuits.counts()
    places = wiring.places(n)
    gates, whole = [], []
    for singles, pairs in zip(places.one, places.two, strict=True):
        cz = sum(both[0].cz for both in pairs.values()) / max(1, len(pairs))
        typical = replace(singles[0], cz=cz, sx=sum(noise.sx for noise in singles) / n)
        readout = math.prod(1 - (noise.read_1_given_0 + noise.read_0_given_1) / 2 for noise in singles)
        gates.append(1 - typical.total_error({**counts, "qubits": 0}))
        whole.append(gates[-1] * readout)
    errors = wiring.errors(n, chosen)
    spread = float(errors.min()), float(errors.mean()), float(errors.max())
    seconds = circuit_seconds(circuit)
    return BlockCost(
        counts, circuit.depth(), seconds, len(chosen), spread, float(np.mean(gates)), float(np.mean(whole))
    )


def best_share(errors: Sequence[float], dim: int, shots: int) -> tuple[int, float]:
    """How many of the places, best first, give the least squared error at equal QPU time, and that error. Fewer places
    need more circuits for a token and leave fewer shots for each; counting costs (b - 1) / (4 shots)."""
    running = np.cumsum(errors) / np.arange(1, len(errors) + 1)
    total = running + (dim - 1) / (4 * shots) * len(errors) / np.arange(1, len(errors) + 1)
    return int(total.argmin()) + 1, float(total.min())


def circuit_seconds(circuit: Any) -> float:
    """Estimated duration of a circuit of CZ, SX and X gates and one measurement, by its depth."""
    two = circuit.depth(lambda i: i.operation.name == "cz")
    one = circuit.depth(lambda i: i.operation.name in ("sx", "x"))
    return two * CZ_S + one * SX_S + MEASURE_S


def execution_seconds(circuit: Any, delay: float | None = None) -> float:
    """Estimated QPU seconds of one execution: repetition delay (None: the usual one) and circuit."""
    return (REPETITION_DELAY_S if delay is None else delay) + max(circuit_seconds(circuit), CIRCUIT_S)
