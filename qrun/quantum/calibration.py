"""A processor's calibration, qubit by qubit and coupler by coupler.

    calibration("FakeMarrakesh")          of a recorded backend
    calibration("chip.json")              of a file that `qrun qpu noise BACKEND --out chip.json` wrote

As in Qiskit Aer's device models: a reported gate error is the average infidelity of depolarising followed by
relaxation, so with F the average fidelity of the relaxation and d = 2^qubits the depolarising probability is
p = d (error - 1 + F) / (d F - 1), none where relaxation explains more than is reported; T2 is at most 2 T1.
"""

import hashlib
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from qrun.errors import InputError
from qrun.foreign import read_json, typed
from qrun.quantum.noise import GROUPS, Noise, Relaxation
from qrun.quantum.services import FAKES, fake_backend
from qrun.quantum.synthesis import Edge

BROKEN = 0.5  # a gate or readout with an error this large is out of order
Error = Annotated[float, Field(ge=0, lt=BROKEN)]
Duration = Annotated[float, Field(ge=0, lt=math.inf)]
Time = Annotated[float, Field(gt=0, lt=math.inf)] | None


LOWER = "; lower noise.factor, if it is above 1"  # of what a scaled calibration comes to


@dataclass(frozen=True)
class Qubit:
    """Reported values of a working qubit: average infidelity of sx, times in microseconds (None: not reported),
    duration in nanoseconds, readout errors."""

    sx: Error
    sx_ns: Duration
    t1_us: Time
    t2_us: Time
    read_1_given_0: Error
    read_0_given_1: Error

    @property
    def readout(self) -> float:
        """Mean readout error."""
        return (self.read_1_given_0 + self.read_0_given_1) / 2


@dataclass(frozen=True)
class Coupler:
    """Average infidelity of cz, the worse of both directions, and its duration in nanoseconds."""

    cz: Error
    cz_ns: Duration


class Stored(TypedDict):
    """A calibration as JSON has it: qubits by number, couplers by `0-1`."""

    name: str
    date: str
    size: Annotated[int, Field(ge=1, le=1_000_000)]
    qubits: Annotated[dict[int, Qubit], Field(min_length=1)]
    couplers: Annotated[dict[Annotated[str, Field(pattern=r"^\d+-\d+$")], Coupler], Field(min_length=1)]
    left_out: dict[str, str]
    id: NotRequired[str | None]


@dataclass(frozen=True)
class Calibration:
    """What of a chip works, and `left_out`: what does not, and why."""

    name: str
    date: str
    size: int
    qubits: Mapping[int, Qubit]
    couplers: Mapping[Edge, Coupler]
    left_out: Mapping[str, str]
    id: str | None = None  # of the provider

    @property
    def words(self) -> str:
        """Date and what is left out, in a line."""
        out = ", ".join(f"{name} ({why})" for name, why in self.left_out.items())
        return f"{self.name}, calibration of {self.date[:10]}; left out: {out or 'nothing'}"

    def noise(self, base: Noise, qubit: int, coupler: Coupler | None = None) -> Noise:
        """The noise of gates on a qubit, the cz being the coupler's. Where `base` was moved away from this chip's
        medians, every place moves in the same proportion; dephasing and the one channel for the circuit are base's.
        Raises InputError where a place's rate would not be physical any more."""
        here, by = self.qubits[qubit], self._moved(base)
        times: dict[str, Any] = {"t1_us": here.t1_us, "t2_us": _t2(here)}
        alone = Noise(**times, sx_ns=here.sx_ns, cz_ns=coupler.cz_ns if coupler else 0.0)
        values = {
            "sx": _depolarising(here.sx, _fidelity([alone], 1), 1), "sx_ns": here.sx_ns, "cz_ns": alone.cz_ns,
            "read_1_given_0": here.read_1_given_0, "read_0_given_1": here.read_0_given_1, **times,
        }  # fmt: skip
        scaled: dict[str, Any] = {key: value and value * by[key] for key, value in values.items()}
        t1, t2 = (scaled[key] or None for key in ("t1_us", "t2_us"))
        if t1 and t2 and math.isclose(t2, 2 * t1):
            t2 = min(t2, 2 * t1)  # to the last bit
        scaled |= {"t1_us": t1, "t2_us": t2, "dephasing": base.dephasing, "block": base.block}
        try:
            return Noise(base.name, base.date, base.source, **scaled)
        except InputError as error:
            raise InputError(f"noise={base.name}, qubit {qubit} of {self.name}: {error}{LOWER}") from None

    def pair(self, base: Noise, edge: Edge) -> tuple[Noise, Noise]:
        """The noise of both qubits of a cz, whose depolarising error they share."""
        coupler = self.couplers[min(edge), max(edge)]
        alone = [Noise(t1_us=(q := self.qubits[i]).t1_us, t2_us=_t2(q), cz_ns=coupler.cz_ns) for i in edge]
        shared = _depolarising(coupler.cz, _fidelity(alone, 2), 2) * self._moved(base)["cz"]
        try:
            one, two = (replace(self.noise(base, qubit, coupler), cz=shared) for qubit in edge)
        except InputError as error:
            raise InputError(f"noise={base.name}, coupler {edge[0]}-{edge[1]} of {self.name}: {error}{LOWER}") from None
        return one, two

    def _moved(self, base: Noise) -> dict[str, float]:
        """How many times its median each value of the base is. A median of 0 cannot tell: a readout error moves as the
        other one, a gate's error as its relaxation, duration over T1."""
        own = self.medians
        by = {key: float(getattr(base, key) or 0) / value for key, value in own.items() if value}
        for gate in ("sx", "cz"):
            t1 = by.get("t1_us", 1.0)
            by.setdefault(gate, by.get(f"{gate}_ns", 1.0) / t1 if t1 else 0.0)
        for read, other in (GROUPS["readout"], GROUPS["readout"][::-1]):
            by.setdefault(read, by.get(other, 1.0))
        return {key: by.get(key, 1.0) for key in own}

    @property
    def typical(self) -> Noise:
        """The medians as a noise."""
        noise = Noise(self.name, self.date[:10] or None)
        for key, value in self.medians.items():
            setattr(noise, key, value or (None if key in ("t1_us", "t2_us") else 0.0))
        return noise

    @cached_property
    def medians(self) -> dict[str, float]:
        """Medians over what works, of the fields of a Noise: times, durations, readout as reported, the depolarising
        part of both gates. Medians, not means: one broken coupler would carry the mean."""
        found = {key: statistics.median(values) for key, values in self._values().items() if values}
        found = {key: float(f"{value:.3g}") for key, value in found.items()}
        t1, t2 = found.get("t1_us", 0.0), found.get("t2_us", 0.0)
        found |= {"t1_us": t1, "t2_us": min(t2, 2 * t1) if t1 and t2 else t2}
        typical = Noise(t1_us=t1 or None, t2_us=found["t2_us"] or None, sx_ns=found["sx_ns"], cz_ns=found["cz_ns"])
        for key, count in (("sx", 1), ("cz", 2)):
            left = max(found[key] - (1 - _fidelity([typical] * count, count)), 0.0)
            found[key] = float(f"{left:.3g}")
        return found

    def _values(self) -> dict[str, list[float]]:
        keys = [field.name for field in fields(Qubit)]
        return {
            **{key: [v for q in self.qubits.values() if (v := getattr(q, key)) is not None] for key in keys},
            **{key: [getattr(c, key) for c in self.couplers.values()] for key in ("cz", "cz_ns")},
        }

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which `from_dict` takes, also after a way through JSON."""
        return {**asdict(self), "couplers": {f"{a}-{b}": asdict(c) for (a, b), c in self.couplers.items()}}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], where: str | Path) -> "Calibration":
        """The calibration of `as_dict`. Raises InputError, which begins with `where`, for a value that is missing, of
        another type or out of its range."""
        stored = typed(Stored, json.dumps(facts), where)
        # as they are there: a whole number stays one, and the digest the same
        chip = {int(key): Qubit(*(value[f.name] for f in fields(Qubit))) for key, value in facts["qubits"].items()}
        couplers: dict[Edge, Coupler] = {}
        for key, value in facts["couplers"].items():
            a, b = map(int, key.split("-"))
            if not a < b or not {a, b} <= chip.keys():
                raise InputError(f"{where}: couplers.{key} joins no two of its qubits, the smaller first")
            couplers[a, b] = Coupler(value["cz"], value["cz_ns"])
        if not 0 <= min(chip) <= max(chip) < stored["size"]:
            raise InputError(f"{where}: qubits from {min(chip)} to {max(chip)}, but size={stored['size']}")
        return cls(**{**stored, "qubits": chip, "couplers": couplers})  # type: ignore[arg-type]

    def to_json(self) -> str:
        """One file that `calibration` reads back."""
        return json.dumps(self.as_dict(), indent=1) + "\n"


def _t2(qubit: Qubit) -> float | None:
    t1, t2 = qubit.t1_us, qubit.t2_us
    return min(t2, 2 * t1) if t1 and t2 else t2


def _fidelity(noises: Sequence[Noise], qubits: int) -> float:
    """Average fidelity of the relaxation on the qubits of a gate: (d F_pro + 1) / (d + 1), F_pro a product."""
    process = 1.0
    for noise in noises:
        rates = Relaxation(noise, qubits).rates()
        process *= (1 + rates.longitudinal + 2 * rates.transverse) / 4
    d = 2**qubits
    return (d * process + 1) / (d + 1)


def _depolarising(error: float, fidelity: float, qubits: int) -> float:
    """The average infidelity, by Noise's convention, of the depolarising part of a reported error."""
    d = 2**qubits
    return max(error - 1 + fidelity, 0.0) * (d - 1) / (d * fidelity - 1)


def calibration(name: str) -> Calibration:
    """Of a recorded backend or a JSON file. Raises InputError for anything else."""
    if name in FAKES:
        return _recorded(name)
    if not os.path.isfile(name):
        raise InputError(f"noise.calibration={name}: no such file; recorded backends are {', '.join(FAKES)}")
    at = os.stat(name)
    return _read(Path(name).absolute(), at.st_mtime_ns, at.st_size)


@cache
def _recorded(name: str) -> Calibration:
    return read_calibration(fake_backend(name))


@cache
def _read(path: Path, changed: int, size: int) -> Calibration:
    """A file's, once as it is."""
    return Calibration.from_dict(read_json(path), f"noise.calibration={path}: not a calibration")


def read_calibration(backend: Any) -> Calibration:
    """Of a Qiskit backend. Qubits that cannot be read or turned, and couplers without a reported error or with one of
    0.5 or more, in either direction, are left out."""
    target, properties = backend.target, backend.properties()
    if "cz" not in target.operation_names:
        raise InputError(f"device.backend={backend.name}: circuits here are made of CZ gates, which it does not have")
    left_out: dict[str, str] = {}
    qubits = {}
    for q in range(backend.num_qubits):
        found, why = _qubit(target, properties, q)
        if found is None:
            left_out[str(q)] = why
        else:
            qubits[q] = found
    couplers: dict[Edge, Coupler] = {}
    for a, b in {(min(pair), max(pair)) for pair in target["cz"]}:
        both = [p for pair in ((a, b), (b, a)) if pair in target["cz"] for p in [target["cz"][pair]]]
        if any(p is None or p.error is None for p in both):
            left_out[f"{a}-{b}"] = "no error reported"
        elif not all(properties.is_gate_operational("cz", pair) for pair in ((a, b), (b, a)) if pair in target["cz"]):
            left_out[f"{a}-{b}"] = "not operational"
        elif bad := [p.error for p in both if not p.error < BROKEN]:  # also NaN
            left_out[f"{a}-{b}"] = f"error {max(bad):.2g}"
        elif a in qubits and b in qubits:
            couplers[a, b] = Coupler(max(p.error for p in both), (both[0].duration or 0.0) * 1e9)
        else:
            left_out[f"{a}-{b}"] = "one of its qubits is out"
    date = str(properties.last_update_date)
    if not couplers:
        raise InputError(f"device.backend={backend.name}: no two of its qubits are joined by a CZ gate that works")
    ordered = dict(sorted(couplers.items()))
    provided = getattr(backend, "calibration_id", None)
    return Calibration(backend.name, date, backend.num_qubits, qubits, ordered, left_out, provided)


def _qubit(target: Any, properties: Any, q: int) -> tuple[Qubit | None, str]:
    """The qubit's values, or why it is out."""
    sx, measure = (target[name].get((q,)) if name in target.operation_names else None for name in ("sx", "measure"))
    if sx is None or measure is None or not properties.is_qubit_operational(q):
        return None, "not operational"
    reported = properties.qubit_property(q)

    def value(key: str, missing: Any) -> Any:
        return reported[key][0] if key in reported else missing

    read = [value(key, measure.error) for key in ("prob_meas1_prep0", "prob_meas0_prep1")]
    if sx.error is None or any(error is None for error in read):
        return None, "no error reported"
    if bad := [error for error in (sx.error, *read) if not error < BROKEN]:  # also NaN
        return None, f"error {max(bad):.2g}"
    t1, t2 = (value(key, None) for key in ("T1", "T2"))
    times = [time * 1e6 if time else None for time in (t1, t2)]
    return Qubit(sx.error, (sx.duration or 0.0) * 1e9, times[0], times[1], read[0], read[1]), ""
