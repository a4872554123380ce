"""Groups `device`, `estimate` and `signs`: who computes Q x, and what counts become. `noise` is quantum/noise.py's."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qrun.config.ranges import at_least, need, require
from qrun.quantum.devices import KINDS


class Precision(Enum):
    """Arithmetic of the fast simulators."""

    float32 = "float32"
    float64 = "float64"


class Sign(Enum):
    """Whose signs an estimate gets; counts carry none."""

    input = "input"  # sign(x), the paper's rule
    exact = "exact"  # sign(Q x), a control that needs the answer
    two_settings = "two_settings"  # counted: half the shots after RY(pi/2) on every qubit
    reference = "reference"  # counted: beside a known amplitude on one more qubit


class Estimator(Enum):
    """How frequencies become magnitudes; quantum/estimates.py has the formulas."""

    sqrt = "sqrt"  # of the frequencies, the paper's rule
    calibrated = "calibrated"  # readout errors and one depolarising rate a block taken out; knows nothing of x
    soft = "soft"  # calibrated, signs by tanh: leans on x
    posterior = "posterior"  # calibrated, mean under a prior around x: leans on x


class Rates(Enum):
    """Where the readout errors of a calibrated estimate come from; depolarising rates are always counted."""

    measured = "measured"  # counted: all |0> and all |1>
    properties = "properties"  # as the noise or the processor's calibration says


@dataclass
class EstimateConfig:
    """Group `estimate`: how counts become magnitudes."""

    kind: Estimator = Estimator.sqrt
    rates: Rates = Rates.measured

    @property
    def leans(self) -> bool:
        """Whether it draws on x beyond its signs."""
        return self.kind in (Estimator.soft, Estimator.posterior)


@dataclass
class SignsConfig:
    """Group `signs`: whose signs the magnitudes get."""

    kind: Sign = Sign.input


DEVICES = ("exact", *KINDS)  # exact is the matrix product, no device
PROCESSORS = ("fake", "ibm")  # they only count
CIRCUITS = ("line", "qiskit", "merged", "direct")  # quantum/circuits.py says how each writes Q


class Mode(Enum):
    """How the jobs of a call reach an IBM processor."""

    job = "job"  # each through the queue
    batch = "batch"  # together
    session = "session"  # together, with the processor reserved, and billed, while it is open


class Allocation(Enum):
    """How the shots of a token are shared out among its slices."""

    equal = "equal"
    effect = "effect"  # in proportion to |x_j| |W_j|: the least error behind the projection for the same total


DECOUPLING = ("XX", "XpXm", "XY4")


@dataclass
class DeviceConfig:
    """Group `device`: who computes Q x."""

    kind: str = "exact"
    shots: int | None = 8192  # per circuit; null gives exact probabilities where the device can
    backend: str | None = None  # which simulator or processor of that kind
    circuit: str = "line"  # how Q is written; config group `circuit`
    coupling: str = "line"  # which qubits a circuit's CZ may join: line, neighbours on a path; full, every pair
    keep: float = 0.8  # share of a calibrated chip's places that is used, the best ones
    allocation: Allocation = Allocation.equal  # of shots; a processor counts all blocks of a circuit as often
    takes_noise: bool = False  # what the device is, not a choice: it has a noise model
    precision: Precision = Precision.float32
    budget_s: float | None = None  # most QPU seconds of all jobs of a results folder, on fake and ibm
    repetition: int = 0  # another number measures everything anew, on fake and ibm
    mode: Mode = Mode.job  # on ibm
    options: dict[str, Any] = field(default_factory=dict)  # of the sampler on ibm, of the plugin on pennylane

    def __post_init__(self) -> None:
        counts = self.shots is not None or self.kind not in PROCESSORS
        budget = self.budget_s is None or self.budget_s > 0
        need(self, "device.kind", self.kind in DEVICES, f"use {', '.join(DEVICES)}")
        at_least(self, 1, "device.shots", null=", or null for exact probabilities")
        need(self, "device.shots", counts, f"device.kind={self.kind} only counts; give a number of shots")
        need(self, "device.circuit", self.circuit in CIRCUITS, f"use {', '.join(CIRCUITS)}")
        need(self, "device.coupling", self.coupling in ("line", "full"), "use line or full")
        chips = self.kind not in PROCESSORS or self.coupling == "line"
        need(self, "device.coupling", chips, f"{self.kind} has neighbours only; use line")
        own = self.kind in ("shots", "noisy") or (self.kind == "aer" and self.backend != "pennylane")
        free = own or self.allocation is Allocation.equal
        need(self, "device.allocation", free, f"{self.kind} counts all alike; use equal")
        need(self, "device.keep", 0 < self.keep <= 1, "give a share of the places, above 0 and up to 1")
        need(self, "device.budget_s", budget, "give seconds above 0, or null for no limit")
        at_least(self, 0, "device.repetition")
        only = f"only device=ibm has it, not {self.kind}; leave it"
        need(self, "device.mode", self.kind == "ibm" or self.mode is Mode.job, f"{only} at job")
        free = self.kind in ("ibm", "pennylane")
        need(self, "device.options", free or not self.options, f"{self.kind} has none; leave it empty")
        if self.kind == "pennylane":  # a plugin's own words, which only the plugin knows
            return
        choices = ", ".join(DECOUPLING)
        words = {
            "dynamical_decoupling": (lambda v: v in (None, *DECOUPLING), f"use {choices} or null"),
            "gate_twirling": (lambda v: isinstance(v, bool), "use true or false"),
            "measure_twirling": (lambda v: isinstance(v, bool), "use true or false"),
            "rep_delay_us": (lambda v: v is None or (type(v) in (int, float) and v > 0), "give microseconds above 0"),
        }
        for word, value in self.options.items():
            require(word in words, f"device.options.{word}", value, f"possible words: {', '.join(words)}")
            require(words[word][0](value), f"device.options.{word}", value, words[word][1])
        self.options = {word: value for word, value in self.options.items() if value not in (None, False)}
