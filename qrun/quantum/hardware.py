"""SamplerV2 on real and fake IBM processors: blocks packed onto the chip, angles bound per token.

One circuit holds as many blocks as the packing; its Q gates are fixed, its preparation angles are parameters, and the
tokens of a call are rows of parameter values. Rows are cut into pieces, whose key is the digest of the packed circuit,
the angles, processor, places, options, shots and repetition (dispatch.py sends pieces, jobs.py keeps them).

The processor is chosen once: the least busy one, if none is named, and what was read of its calibration stay in the job
book, so that the same command makes the same circuits on the same places tomorrow. `device.repetition` asks for
everything anew.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import ParameterVector

from qrun.config.schema import DeviceConfig
from qrun.errors import InputError
from qrun.quantum.calibration import Calibration, read_calibration
from qrun.quantum.circuits import Circuits, to_qiskit
from qrun.quantum.devices.base import Device, Request, Setting
from qrun.quantum.dispatch import Dispatcher, Piece
from qrun.quantum.encoding import Floats, qubits
from qrun.quantum.jobs import JobBook
from qrun.quantum.layout import Place
from qrun.quantum.plan import EXECUTIONS_PER_JOB, execution_seconds
from qrun.quantum.services import (
    FakeService,
    IbmService,
    Service,
    fake_backend,
    ibm_account,
    ibm_backend,
    instance_digest,
)
from qrun.quantum.synthesis import Ansatz, Written
from qrun.quantum.wiring import Wiring

SIMULATED_QUBITS = 8  # a fake backend simulates the packed circuit as one register
EXECUTIONS_PER_PIECE = 100_000  # jobs are cut between pieces


@dataclass(frozen=True)
class Packed:
    """Blocks' circuits, and per packed circuit its blocks, the circuit and what beside the angles makes its counts."""

    circuits: Circuits
    groups: list[tuple[Any, Any, str]]


class ProcessorDevice(Device):
    """Counts from a processor. `folder` keeps the job book; `most_qubits` are used at once."""

    def __init__(
        self, config: DeviceConfig, chip: Calibration, service: Service, folder: Path, most_qubits: int,
        reference: bool = False, ansatz: Ansatz | None = None,
    ) -> None:  # fmt: skip
        wiring = Wiring(
            chip.typical, config.circuit, config.coupling, config.keep, chip, most_qubits, reference, ansatz
        )
        super().__init__(wiring, config.shots, np.float64)
        self.name, self.config, self.chip = config.kind, config, chip
        self.used: dict[int, list[Place]] = {}  # places by qubits of a block
        shots = config.shots or 0
        self.jobs = Dispatcher(
            JobBook(folder), service, config.kind, chip.name, chip.id or chip.date, shots, config.budget_s
        )
        self.remark = f"processor {chip.words}"

    def written(self, prepared: "Packed") -> Circuits:
        return prepared.circuits

    def _prepare(self, blocks: Floats, turned: bool, written: Written | None) -> "Packed":
        n = self.wiring.qubits(blocks.shape[-1])
        chosen, circuits = self.wiring.chosen(n), self.circuits(blocks, turned, written)
        self.used[n] = chosen
        # a simulation knows of waiting only what a circuit says; a chip waits by itself
        waits = self.places(n).waits(circuits) if self.name == "fake" else None
        small = [to_qiskit(circuits, j, waits=waits) for j in range(len(blocks))]
        starts, most = range(0, len(blocks), len(chosen)), len(blocks)
        groups = [list(range(start, min(start + len(chosen), most))) for start in starts]
        prepared = []
        for group in groups:
            circuit = packed_circuit([small[j] for j in group], chosen, self.chip.size)
            prepared.append((group, circuit, self._stem(circuit, chosen[: len(group)])))
        return Packed(circuits, prepared)

    def _stem(self, circuit: Any, places: Sequence[tuple[int, ...]]) -> str:
        """What beside the angles makes a circuit's counts."""
        c = self.config
        words = [c.kind, self.chip.name, places, c.options, c.shots, c.repetition]
        return json.dumps([*words, circuit_digest(circuit)], sort_keys=True)

    def _probabilities(self, prepared: "Packed", units: Floats, mask: np.ndarray) -> Floats:
        raise NotImplementedError("a processor only counts")

    def run_all(self, requests: Sequence[Request]) -> list[Floats]:
        """Frequencies; the shots of a processor have no seed, so keys and numbers are not used. All requests share
        jobs. Raises InputError if the budget is too small, RunFailed for what the service did not do."""
        work = [self._pieces(made, self._encoded(made, units), mask) for made, units, mask, _, _ in requests]
        found = self.jobs.collect([piece for pieces in work for _, piece in pieces])
        out = [np.full(units.shape, 1 / units.shape[-1]) for _, units, _, _, _ in requests]
        for pieces, result in zip(work, out, strict=True):
            for where, piece in pieces:
                result[where] = found[piece.key]
        return out

    def _pieces(self, prepared: "Packed", units: Floats, mask: np.ndarray) -> list[tuple[Any, Piece]]:
        """What is sent for these slices, and which of them each piece answers."""
        n, blocks = qubits(units.shape[-1]), units.shape[1]
        shape, preparations = self.wiring.assigned(n, blocks), self.wiring.preparations(n)
        angles = np.stack([preparations[shape[j]].angles(units[:, j]) for j in range(blocks)], 1)
        work = []
        for group, circuit, stem in prepared.groups:
            gates = circuit.count_ops().get("cz", 0)
            rows = np.flatnonzero(mask[:, group].any(axis=1))  # a token whose slices are all zero needs no circuit
            for part in self._parts(rows):
                values = angles[np.ix_(part, group)].reshape(len(part), -1)
                name = hashlib.sha256(stem.encode() + values.astype(np.float32).tobytes()).hexdigest()[:32]
                work.append((np.ix_(part, group), Piece(name, circuit, values, gates, self._seconds(circuit))))
        return work

    def _parts(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Rows of a circuit in pieces that a job takes."""
        step = max(1, min(EXECUTIONS_PER_PIECE, EXECUTIONS_PER_JOB) // self.jobs.shots)
        return np.split(rows, range(step, len(rows), step)) if len(rows) else []

    def _seconds(self, circuit: Any) -> float:
        """Of one execution, with the delay before it that device.options asks for."""
        delay = self.config.options.get("rep_delay_us")
        return execution_seconds(circuit, None if delay is None else delay * 1e-6)

    def confusion(self, prepared: "Packed", dim: int, counted: int | None, seed: int = 0) -> NDArray[np.float64]:
        """As the calibration says, or counted on the chip: all |0> and all |1> on every place in use, side by side;
        once for all sites, since their key is the same."""
        if counted is None:
            return super().confusion(prepared, dim, None)
        n, circuits = qubits(dim), prepared.circuits
        places = self.wiring.chosen(n)[: len(circuits)]
        rows, sent = np.zeros((max(1, counted // self.jobs.shots), len(places))), []
        for ones in (False, True):
            whole = packed_circuit([readout_circuit(n, ones)] * len(places), places, self.chip.size)
            stem, seconds, pieces = self._stem(whole, places), self._seconds(whole), []
            for number, part in enumerate(self._parts(rows)):
                words = f"{stem} {len(part)}" + f" {number}" * (number > 0)
                name = hashlib.sha256(words.encode()).hexdigest()[:32]
                pieces.append(Piece(name, whole, part, 0, seconds))
            sent.append(pieces)
        found = self.jobs.collect([piece for pieces in sent for piece in pieces])
        bits = np.arange(dim)[:, None] >> np.arange(n) & 1
        counts = [np.concatenate([found[piece.key] for piece in pieces]).mean(0) for pieces in sent]
        zeros, ones_read = (count @ bits for count in counts)  # shares read as 1 [P, n]
        tables = np.stack([np.stack([1 - zeros, 1 - ones_read], -1), np.stack([zeros, ones_read], -1)], -2)
        return np.stack([tables[j % len(places), circuits.wires[j]] for j in range(len(circuits))])

    def record(self) -> dict[str, Any]:
        """Processor, calibration, versions, options, places, and the jobs that the counts came from."""
        c, chip = self.config, self.chip
        self.jobs.learn_usage(self.jobs.used)
        jobs = self.jobs.book.jobs(self.jobs.used)
        known = [job.real_s for job in jobs if job.real_s is not None]
        shown = ("job_id", "state", "attempt", "circuits", "shots", "estimated_s", "allowed_s", "real_s", "why", "tag")
        return {
            "processor": chip.name, "calibration": chip.id, "calibration_time": chip.date,
            "qiskit": version("qiskit"), "qiskit_ibm_runtime": version("qiskit-ibm-runtime"), "mode": c.mode.value,
            "circuit": c.circuit, "repetition": c.repetition, "options": dict(c.options),
            "places": {str(n): places for n, places in self.used.items()}, "left_out": dict(chip.left_out),
            "qpu_jobs": len(jobs), "qpu_seconds": sum(known) if len(known) == len(jobs) else None,
            "qpu_seconds_estimated": sum(job.estimated_s for job in jobs),
            "jobs": [{word: getattr(job, word) for word in shown} for job in jobs],
        }  # fmt: skip


def readout_circuit(n: int, ones: bool) -> Any:
    """n qubits in |0>, or each in |1>, and read; the free angle turns nothing and lets one circuit have many rows."""
    circuit = QuantumCircuit(n, n)
    if ones:
        circuit.x(range(n))
    circuit.rz(ParameterVector("t", 1)[0], 0)
    circuit.measure(range(n), range(n))
    return circuit


def packed_circuit(small: Sequence[Any], places: Sequence[tuple[int, ...]], chip_qubits: int) -> Any:
    """Block circuits side by side on the chip, classical register c<j> for block j, parameters p<j>[...] in the
    order of the blocks."""
    whole = QuantumCircuit(QuantumRegister(chip_qubits, "q"))
    for j, (circuit, place) in enumerate(zip(small, places, strict=False)):
        register = ClassicalRegister(circuit.num_clbits, f"c{j:03d}")
        whole.add_register(register)
        free = sorted(circuit.parameters, key=lambda p: p.index)
        renamed = circuit.assign_parameters(dict(zip(free, ParameterVector(f"p{j:03d}", len(free)), strict=True)))
        renamed.global_phase = 0  # not observable, and parametric phases are no instruction set
        whole.compose(renamed, qubits=list(place), clbits=list(register), inplace=True)
    return whole


def circuit_digest(circuit: Any) -> str:
    """Fingerprint of a circuit: its operations, qubits and bits, and its angles at one fixed set of parameter values.
    (QPY has names that are new in every process.)"""
    bound = circuit.assign_parameters(np.cos(1.0 + np.arange(circuit.num_parameters)))
    index = {bit: i for bits in (bound.qubits, bound.clbits) for i, bit in enumerate(bits)}
    lines = []
    for step in bound.data:
        angles = [round(float(angle), 9) + 0.0 for angle in step.operation.params]  # no -0.0
        lines.append([step.operation.name, [index[q] for q in step.qubits], [index[c] for c in step.clbits], angles])
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def open_processor(setting: Setting) -> ProcessorDevice:
    """The device of kind fake or ibm. Raises InputError for an unknown processor, account or missing package."""
    config, folder, more = setting.config, setting.folder, (setting.reference, setting.ansatz)
    if (config.shots or 0) > EXECUTIONS_PER_JOB:
        raise InputError(f"device.shots={config.shots}: a job takes {EXECUTIONS_PER_JOB:,} executions at most")
    if config.kind == "fake":
        backend = fake_backend(config.backend)
        chip = read_calibration(backend)
        return ProcessorDevice(config, chip, FakeService(backend), folder, SIMULATED_QUBITS, *more)
    account = ibm_account()
    chip, backend, kept = choose(account, config, JobBook(folder))
    service = IbmService(account, backend, config.mode.value, config.options)
    device = ProcessorDevice(config, chip, service, folder, chip.size, *more)
    if kept:
        device.remark = f"{device.remark}; kept for this results folder since it was first asked"
    return device


def choose(account: Any, config: DeviceConfig, book: JobBook) -> tuple[Calibration, Any, bool]:
    """Chip and backend that the book keeps for these words and this instance, chosen and kept now if there are none;
    whether they were there."""
    asked = json.dumps([config.kind, config.backend, instance_digest(), config.repetition])
    kept = book.processor(asked)
    backend = ibm_backend(account, kept[0]["name"] if kept else config.backend)
    if kept is None:
        book.keep_processor(asked, backend.name, read_calibration(backend).as_dict())
        first = book.processor(asked)  # of whoever was first
        assert first is not None
        chip = Calibration.from_dict(first[0], book.path)
        return chip, backend if chip.name == backend.name else ibm_backend(account, chip.name), False
    return Calibration.from_dict(kept[0], book.path), backend, True
