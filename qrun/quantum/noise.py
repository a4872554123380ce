"""The noise of a block circuit: channels after its gates, one depolarising channel for the whole, asymmetric readout.

Noise is what a user sets (Hydra's group `noise`); a channel turns it into rates of Paulis for the fast simulators and
into Kraus operators for Aer and PennyLane. A new channel is a class in CHANNELS, a field of Noise, and its tests.

Conventions are Qiskit's: `depolarizing_error(p, 1)` multiplies X, Y, Z by 1 - p and `depolarizing_error(p, 2)` the
fifteen non-identity strings of the pair. A reported gate error is an average infidelity r; p = 2 r for one qubit and
4 r / 3 for two. Each physical gate (sx, x, cz) is followed by its depolarising channel, then by those of its own qubits
for its own duration; rz is virtual and free; what a qubit waits between its gates is quantum/places.py's. Lambda of
`block` is one depolarising probability for the whole circuit, p -> (1 - lambda) p + lambda / 2^n, the reading of the
paper's rate. Only the standard library is imported: the configuration needs this file before anything heavy.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from qrun.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Matrices = list[np.ndarray]

MOST = {"sx": 0.5, "cz": 0.75, "dephasing": 0.5, "read_1_given_0": 0.5, "read_0_given_1": 0.5, "block": 1.0}
RATED = (*MOST, "t1_us", "t2_us")
GROUPS = {
    "one_qubit": ("sx", "sx_ns"),
    "two_qubit": ("cz", "cz_ns"),
    "readout": ("read_1_given_0", "read_0_given_1"),
}  # a gate's relaxation moves with its duration
SHARED = ("dephasing", "block")  # errors of both kinds of gates at once
AXES = ("gates", "two_qubit", "one_qubit", "readout", "proportional")


class Rates(NamedTuple):
    """A gate's noise in the Pauli picture: `keep` on all strings of its qubits but the identity, then on each qubit
    x, y -> transverse * (x, y) and z -> longitudinal * z + shift. One qubit has its `keep` in the other two."""

    transverse: float = 1.0
    longitudinal: float = 1.0
    shift: float = 0.0
    keep: float = 1.0

    def then(self, other: "Rates") -> "Rates":
        """This noise, then the other. On a pair, what acts on both together comes before what shifts."""
        assert other.keep == 1 or self.shift == 0, "a joint channel cannot follow one that shifts"
        return Rates(
            self.transverse * other.transverse,
            self.longitudinal * other.longitudinal,
            other.longitudinal * self.shift + other.shift,
            self.keep * other.keep,
        )


class Channel(Protocol):
    """What befalls the qubits of a gate on one or two `qubits`, right after it."""

    def __init__(self, noise: "Noise", qubits: int) -> None: ...

    def rates(self) -> Rates:
        """Its effect on Paulis."""
        ...

    def kraus(self) -> "Matrices":
        """Operators [2, 2] on each qubit, or [2^qubits, 2^qubits], the same with qubits exchanged, on all at once."""
        ...


class Depolarizing:
    """With probability p the gate's qubits, together, become the mixed state."""

    def __init__(self, noise: "Noise", qubits: int) -> None:
        self.qubits, self.p = qubits, 2 * noise.sx if qubits == 1 else 4 * noise.cz / 3

    def rates(self) -> Rates:
        """1 - p on X, Y, Z, or on the pair's strings."""
        return Rates(1 - self.p, 1 - self.p) if self.qubits == 1 else Rates(keep=1 - self.p)

    def kraus(self) -> "Matrices":
        """All Pauli strings, each with p / 4^qubits."""
        import numpy as np

        paulis = [np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])]
        strings = [reduce(np.kron, string) for string in product(paulis, repeat=self.qubits)]
        each = self.p / len(strings)
        weights = [1 - (len(strings) - 1) * each] + [each] * (len(strings) - 1)
        return [math.sqrt(weight) * string for weight, string in zip(weights, strings, strict=True)]


class Relaxation:
    """Towards |0>: populations by exp(-t / T1), coherences by exp(-t / T2); T2 alone is dephasing, T1 alone has
    T2 = 2 T1."""

    def __init__(self, noise: "Noise", qubits: int) -> None:
        microseconds = (noise.sx_ns if qubits == 1 else noise.cz_ns) / 1000
        self.stay = math.exp(-microseconds / noise.t1_us) if noise.t1_us else 1.0
        self.coherent = math.exp(-microseconds / noise.t2_us) if noise.t2_us else math.sqrt(self.stay)

    def rates(self) -> Rates:
        """The decay of z leaves 1 - exp(-t / T1) of |0>."""
        return Rates(self.coherent, self.stay, 1 - self.stay)

    def kraus(self) -> "Matrices":
        """Nothing, loss of phase, decay."""
        import numpy as np

        dephased = math.sqrt(max(self.stay - self.coherent**2, 0.0))
        return [np.diag([1, self.coherent]), np.diag([0, dephased]), np.array([[0, math.sqrt(1 - self.stay)], [0, 0]])]


class Dephasing:
    """A phase flip, Z, with probability p on each of the gate's qubits."""

    def __init__(self, noise: "Noise", qubits: int) -> None:
        self.p = noise.dephasing

    def rates(self) -> Rates:
        """1 - 2 p on X and Y."""
        return Rates(transverse=1 - 2 * self.p)

    def kraus(self) -> "Matrices":
        """No flip, flip."""
        import numpy as np

        return [math.sqrt(1 - self.p) * np.eye(2), math.sqrt(self.p) * np.diag([1, -1])]


CHANNELS: tuple[type[Channel], ...] = (Depolarizing, Relaxation, Dephasing)  # in the order they act


@dataclass
class Noise:
    """Group `noise`: rates, times in microseconds (null: no relaxation), durations in nanoseconds. Not frozen only
    because OmegaConf would make its node read-only; nothing changes a Noise once it is made."""

    name: str = "none"
    date: str | None = None
    source: str | None = None
    calibration: str | None = None  # of a chip, qubit by qubit: a recorded backend or a file; no rate: its medians
    sx: float = 0.0  # average infidelity of sx and x
    cz: float = 0.0  # average infidelity of cz
    t1_us: float | None = None
    t2_us: float | None = None
    sx_ns: float = 0.0
    cz_ns: float = 0.0
    dephasing: float = 0.0  # probability of a phase flip after each gate on each of its qubits
    read_1_given_0: float = 0.0
    read_0_given_1: float = 0.0
    block: float = 0.0  # lambda of one depolarising channel for the whole circuit
    factor: float = 1.0  # multiplies every rate and divides every time, once; 1 afterwards

    def __post_init__(self) -> None:
        if self.calibration and not any(getattr(self, key) for key in RATED):
            from qrun.quantum.calibration import calibration  # needs this module, and a chip's package

            found = calibration(self.calibration)
            self.date = self.date or found.date[:10]
            for key, value in found.medians.items():
                setattr(self, key, value)
        self._check("")
        if self.factor == 1:
            return
        by, self.factor = self.factor, 1.0
        for key in MOST:
            setattr(self, key, getattr(self, key) * by)
        self.t1_us, self.t2_us = (t / by if t and by else None for t in (self.t1_us, self.t2_us))
        self.calibration = self.calibration if by else None  # whose medians no later copy shall have
        self.name += f"-x{by:g}".replace("+", "")
        self._check(f" (times noise.factor={by:g})")

    def _check(self, why: str) -> None:
        _within("factor", self.factor, 0 <= self.factor < math.inf, "give 0 or more")
        for key, most in MOST.items():
            value = getattr(self, key)
            _within(key, value, 0 <= value <= most, f"give a rate from 0 to {most:g}", why)
        for key in ("t1_us", "t2_us"):
            value = getattr(self, key)
            _within(key, value, value is None or 0 < value < math.inf, "give a time above 0, or null for none", why)
        for key in ("sx_ns", "cz_ns"):
            value = getattr(self, key)
            _within(key, value, 0 <= value < math.inf, "give a duration of 0 or more", why)
        t1 = self.t1_us or math.inf
        above = f"unphysical, T2 cannot exceed 2 noise.t1_us = {2 * t1:g}"
        _within("t2_us", self.t2_us, (self.t2_us or 0) <= 2 * t1, above)

    def channels(self, qubits: int) -> list[Channel]:
        """The channels that do something after a gate on 1 or 2 qubits, in order."""
        return [channel for channel in (kind(self, qubits) for kind in CHANNELS) if channel.rates() != Rates()]

    def rates(self, qubits: int) -> Rates:
        """All noise after a gate on 1 or 2 qubits in the Pauli picture."""
        return reduce(Rates.then, (channel.rates() for channel in self.channels(qubits)), Rates())

    def kraus(self, qubits: int) -> "list[Matrices]":
        """The same as Kraus operators [2^qubits, 2^qubits] of each channel, in order."""
        import numpy as np

        found = [channel.kraus() for channel in self.channels(qubits)]
        return [
            operators if len(operators[0]) == 2**qubits else [np.kron(a, b) for a, b in product(operators, repeat=2)]
            for operators in found
        ]

    @property
    def confusion(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Probability [read, true] of reading a qubit."""
        up, down = self.read_1_given_0, self.read_0_given_1
        return (1 - up, down), (up, 1 - down)

    @property
    def gates_ideal(self) -> bool:
        """No gate has noise."""
        return not self.channels(1) and not self.channels(2)

    @property
    def ideal(self) -> bool:
        """Nothing acts on circuits."""
        return self.gates_ideal and self.block == self.read_1_given_0 == self.read_0_given_1 == 0

    @property
    def digest(self) -> str:
        """Fingerprint of what acts on circuits: not the name or how the rates came about. Of a calibration only that
        there is one."""
        relaxes = (self.t1_us or self.t2_us) and (self.sx_ns or self.cz_ns)  # what waits as well
        times = (self.t1_us, self.t2_us, self.sx_ns, self.cz_ns) if relaxes else ()
        rates = (*self.rates(1), *self.rates(2), *self.confusion[0], *self.confusion[1], self.block)
        acts = (*rates, *times, self.calibration is not None)
        return hashlib.sha256(repr(acts).encode()).hexdigest()[:12]

    def total_error(self, counts: dict[str, int]) -> float:
        """Probability that depolarising or readout struck a circuit of so many cz, sx (with x) and qubits:
        1 - (1 - 4/3 cz)^CZ (1 - 2 sx)^SX (1 - readout)^n. What waits and relaxes is not counted."""
        one, two = (1 - Depolarizing(self, qubits).p for qubits in (1, 2))
        readout = (self.read_1_given_0 + self.read_0_given_1) / 2
        turned = counts["sx"] + counts.get("x", 0)
        return 1 - two ** counts["cz"] * one**turned * (1 - readout) ** counts["qubits"]

    def along(self, axis: str, rate: float) -> "Noise":
        """The noise moved so that one error is `rate`; itself at its own. Raises InputError where that cannot be.

        gates         cz; one- and two-qubit errors in proportion, relaxation with the durations, readout as it is
        two_qubit     cz; it and its relaxation alone, all else as it is
        one_qubit     sx and its relaxation; no other error
        readout       the mean of both readout errors, their ratio kept; no other error
        proportional  cz; every rate in proportion, times in inverse proportion, as `factor` does
        """
        where = f"noise={self.name} axis={axis} rate={rate:g}"
        if axis not in AXES:
            raise InputError(f"{where}: use axis {', '.join(AXES)}")
        if not 0 <= rate < math.inf:
            raise InputError(f"{where}: give a rate of 0 or more")
        key = {"one_qubit": "sx", "readout": "mean readout error"}.get(axis, "cz")
        reference = (self.read_1_given_0 + self.read_0_given_1) / 2 if axis == "readout" else float(getattr(self, key))
        if reference == 0:
            named = key if axis == "readout" else f"noise.{key}"
            zero = f"its {named} is 0 and has no proportion to scale; choose another noise, noise.factor or axis"
            raise InputError(f"{where}: {zero}")
        by, name = rate / reference, f"{self.name}-{axis}-{rate:g}".replace("+", "")
        start = self.only(axis) if axis in ("one_qubit", "readout") else self
        if by == 1:
            return start
        try:
            if axis == "proportional":
                return replace(replace(self, factor=by), name=name)
            moving = (*GROUPS["one_qubit"], *GROUPS["two_qubit"], *SHARED) if axis == "gates" else GROUPS[axis]
            values: dict[str, Any] = {field: getattr(self, field) * by for field in moving}
            values |= {key: rate} if key in values else {}  # to the last bit
            return start._moved(name, values)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def only(self, *groups: str) -> "Noise":
        """The errors of these groups (readout, one_qubit, two_qubit) alone; SHARED ones need both kinds of gates."""
        if unknown := [group for group in groups if group not in GROUPS]:
            raise InputError(f"noise group {unknown[0]}: use {', '.join(GROUPS)}")
        off = [field for group, fields in GROUPS.items() if group not in groups for field in fields]
        off += () if {"one_qubit", "two_qubit"} <= set(groups) else SHARED
        values: dict[str, Any] = dict.fromkeys(off, 0.0)
        return self._moved("-".join((self.name, "only", *groups)), values)

    def uniform(self) -> "Noise":
        """A circuit that forgot everything: all outcomes alike, read without error."""
        return self._moved(f"{self.name}-uniform", {"block": 1.0, "read_1_given_0": 0.0, "read_0_given_1": 0.0})

    def _moved(self, name: str, values: dict[str, Any]) -> "Noise":
        """With other values; without its calibration, whose medians would come back, where no error is left."""
        some = any(values.get(key, getattr(self, key)) for key in RATED)
        return replace(self, **values, name=name, calibration=self.calibration if some else None)

    def quiet(self) -> "Noise":
        """No noise at all."""
        return Noise()


def _within(key: str, value: object, ok: bool, possible: str, why: str = "") -> None:
    if not ok:
        raise InputError(f"noise.{key}={value}{why}: {possible}")
