"""The noise of a block circuit: gate depolarising, thermal relaxation, asymmetric readout.

Conventions are Qiskit's: `depolarizing_error(p, 1)` multiplies X, Y, Z by 1 - p and `depolarizing_error(p, 2)` the
fifteen non-identity strings of the pair. A reported gate error is an average infidelity r; p = 2 r for one qubit and 4
r / 3 for two. Each physical gate (sx, x, cz) is followed by its depolarising channel, then by thermal relaxation of its
own qubits for its own duration; rz is virtual and free; idle qubits do not decay (as in Aer's backend noise models).
Lambda of `block` is one depolarising probability for the whole circuit, p -> (1 - lambda) p + lambda / 2^n, the reading
of the paper's rate.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from qrun.errors import InputError


@dataclass(frozen=True)
class Channel:
    """Single-qubit relaxation in the Pauli picture: x, y -> transverse * (x, y); z -> longitudinal * z + shift."""

    transverse: float = 1.0
    longitudinal: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Noise:
    """Rates in [0, 1], times in microseconds (None: no relaxation), durations in nanoseconds."""

    name: str = "none"
    date: str | None = None
    source: str | None = None
    sx: float = 0.0  # average infidelity of sx and x
    cz: float = 0.0  # average infidelity of cz
    t1_us: float | None = None
    t2_us: float | None = None
    sx_ns: float = 0.0
    cz_ns: float = 0.0
    read_1_given_0: float = 0.0
    read_0_given_1: float = 0.0
    block: float = 0.0  # lambda of one depolarising channel for the whole circuit

    def __post_init__(self) -> None:
        for key, most in (("sx", 0.5), ("cz", 0.75), ("read_1_given_0", 1.0), ("read_0_given_1", 1.0), ("block", 1.0)):
            value = getattr(self, key)
            if not 0 <= value <= most:
                raise InputError(f"noise.{key}={value}: give a rate from 0 to {most:g}")
        for key in ("t1_us", "t2_us"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise InputError(f"noise.{key}={value}: give a time above 0, or null for none")
        for key in ("sx_ns", "cz_ns"):
            if getattr(self, key) < 0:
                raise InputError(f"noise.{key}={getattr(self, key)}: give a duration of 0 or more")
        if self.t1_us and self.t2_us and self.t2_us > 2 * self.t1_us:
            raise InputError(f"noise.t2_us={self.t2_us}: unphysical, T2 cannot exceed 2 T1 = {2 * self.t1_us:g}")

    @property
    def keep_1q(self) -> float:
        """Factor on X, Y, Z after sx and x."""
        return 1 - 2 * self.sx

    @property
    def keep_2q(self) -> float:
        """Factor on non-identity pairs after cz."""
        return 1 - 4 * self.cz / 3

    def relaxation(self, nanoseconds: float) -> Channel:
        """Thermal relaxation towards |0> for a duration."""
        microseconds = nanoseconds / 1000
        stay = math.exp(-microseconds / self.t1_us) if self.t1_us else 1.0
        coherent = math.exp(-microseconds / self.t2_us) if self.t2_us else math.sqrt(stay)
        return Channel(coherent, stay, 1 - stay)

    def scaled(self, factor: float) -> "Noise":
        """All rates times `factor` and all times divided by it, capped where a rate stops making sense."""
        if factor < 0:
            raise InputError(f"noise.factor={factor}: give 0 or more")
        longer = (lambda t: t / factor if t and factor else None) if factor != 1 else (lambda t: t)
        return Noise(
            self.name, self.date, self.source, min(self.sx * factor, 0.5), min(self.cz * factor, 0.75),
            longer(self.t1_us), longer(self.t2_us),
            self.sx_ns, self.cz_ns, min(self.read_1_given_0 * factor, 0.5), min(self.read_0_given_1 * factor, 0.5),
            min(self.block * factor, 1.0),
        )  # fmt: skip

    @property
    def digest(self) -> str:
        """Fingerprint of what acts on circuits: not its name, date or source."""
        values = {k: v for k, v in asdict(self).items() if k not in ("name", "date", "source")}
        if not (self.t1_us or self.t2_us):
            values |= {"sx_ns": 0.0, "cz_ns": 0.0}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
