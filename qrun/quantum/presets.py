"""Noise presets from an IBM backend's calibration: medians, dated.

    qrun qpu noise FakeMarrakesh --out heron_r2.yaml

Medians, not means: a dead coupler is reported with error 1 and would carry the mean. The depolarising part is what
remains of a gate's reported infidelity after its thermal part, as in Qiskit's `NoiseModel.from_backend`.
"""

import statistics
from typing import Any

from qrun.quantum.noise import Noise

DEAD = 0.5  # a coupler or qubit with an error this large is out of order


def medians(backend: Any) -> dict[str, Any]:
    """Values of a Noise from a backend's target and properties."""
    target, properties = backend.target, backend.properties()
    median = statistics.median
    sx = [p for p in target["sx"].values() if p and p.error is not None and p.error < DEAD]
    cz = [p for p in target["cz"].values() if p and p.error is not None and p.error < DEAD]
    qubits = range(backend.num_qubits)
    t1, t2 = (median([v(q) for q in qubits]) * 1e6 for v in (properties.t1, properties.t2))
    t2 = min(t2, 2 * t1)
    read = [properties.qubit_property(q) for q in qubits]
    sx_ns, cz_ns = (median([p.duration for p in ps]) * 1e9 for ps in (sx, cz))
    thermal = [average_infidelity(ns, t1, t2, count) for ns, count in ((sx_ns, 1), (cz_ns, 2))]
    return {
        "name": backend.name, "date": str(properties.last_update_date)[:10],
        "source": f"medians of {backend.name}, {len(cz)} working CZ directions of {len(target['cz'])}",
        "sx": _round(max(median([p.error for p in sx]) - thermal[0], 0.0)),
        "cz": _round(max(median([p.error for p in cz]) - thermal[1], 0.0)),
        "t1_us": _round(t1), "t2_us": _round(t2), "sx_ns": round(sx_ns), "cz_ns": round(cz_ns),
        "read_1_given_0": _round(median([r["prob_meas1_prep0"][0] for r in read])),
        "read_0_given_1": _round(median([r["prob_meas0_prep1"][0] for r in read])),
    }  # fmt: skip


def average_infidelity(nanoseconds: float, t1_us: float, t2_us: float, qubits: int) -> float:
    """1 - average gate fidelity of thermal relaxation on every qubit of a gate. F_avg = (d F_pro + 1) / (d + 1), F_pro
    the product over qubits."""
    rates = Noise(t1_us=t1_us, t2_us=t2_us, sx_ns=nanoseconds).rates(1)
    process = ((1 + rates.longitudinal + 2 * rates.transverse) / 4) ** qubits
    d = 2**qubits
    return 1 - (d * process + 1) / (d + 1)


def _round(value: float) -> float:
    return float(f"{value:.3g}")
