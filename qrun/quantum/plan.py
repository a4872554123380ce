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

import itertools
import math
from dataclasses import dataclass
from typing import Any

from qiskit import transpile
from qiskit.transpiler import CouplingMap
from scipy.stats import special_ortho_group

from qrun.quantum.circuits import BASIS, block_circuit
from qrun.quantum.encoding import qubits
from qrun.quantum.layout import Chip, pack

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


def plan(chip: Chip, dim: int, blocks_per_site: list[int], tokens: int, shots: int, circuit_seconds: float) -> Plan:
    """Cost of one pass over `tokens` tokens through sites of so many blocks each."""
    packed = len(pack(chip, qubits(dim)))
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
    """One block circuit, prepared and measured, on neighbouring qubits of a chip."""

    counts: dict[str, int]
    depth: int
    seconds: float
    gate_survival: float
    survival: float  # readout included


def block_cost(n: int, chip: Chip, sx_error: float) -> BlockCost:
    """Counts of a Haar-random block transpiled to a path of n qubits, and the error budget with the packing's mean
    coupler and readout errors."""
    circuit = path_circuit(special_ortho_group.rvs(2**n, random_state=0))
    counts = {name: int(circuit.count_ops().get(name, 0)) for name in ("cz", "sx", "x", "rz")}
    places = pack(chip, n)
    edges = [chip.couplers[min(a, b), max(a, b)] for p in places for a, b in itertools.pairwise(p)]
    cz = sum(edges) / len(edges) if edges else 0.0
    readout = sum(chip.readout[q] for p in places for q in p) / (len(places) * n)
    gates = (1 - cz) ** counts["cz"] * (1 - sx_error) ** (counts["sx"] + counts["x"])
    return BlockCost(counts, circuit.depth(), circuit_seconds(circuit), gates, gates * (1 - readout) ** n)


def circuit_seconds(circuit: Any) -> float:
    """Estimated duration of a circuit of CZ, SX and X gates and one measurement, by its depth."""
    two = circuit.depth(lambda i: i.operation.name == "cz")
    one = circuit.depth(lambda i: i.operation.name in ("sx", "x"))
    return two * CZ_S + one * SX_S + MEASURE_S


def execution_seconds(circuit: Any, delay: float | None = None) -> float:
    """Estimated QPU seconds of one execution: repetition delay (None: the usual one) and circuit."""
    return (REPETITION_DELAY_S if delay is None else delay) + max(circuit_seconds(circuit), CIRCUIT_S)


def path_circuit(block: Any, optimization_level: int = 3) -> Any:
    """Preparation with free angles, the block and its measurement, transpiled once to a path of n coupled qubits
    (parameters in the order t[0], t[1], ...)."""
    n = qubits(block.shape[0])
    line = CouplingMap.from_line(n) if n > 1 else None
    return transpile(
        block_circuit(block), coupling_map=line, basis_gates=list(BASIS), optimization_level=optimization_level,
        initial_layout=range(n), seed_transpiler=0,
    )  # fmt: skip
