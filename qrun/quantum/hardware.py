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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import ParameterVector

from qrun.config.schema import DeviceConfig
from qrun.errors import InputError
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.dispatch import Dispatcher, Piece
from qrun.quantum.encoding import Floats, preparation_angles, qubits
from qrun.quantum.jobs import JobBook
from qrun.quantum.layout import Chip, pack, read_chip
from qrun.quantum.noise import Noise
from qrun.quantum.plan import EXECUTIONS_PER_JOB, execution_seconds, path_circuit
from qrun.quantum.services import (
    FakeService,
    IbmService,
    Service,
    fake_backend,
    ibm_account,
    ibm_backend,
    instance_digest,
)

SIMULATED_QUBITS = 8  # a fake backend simulates the packed circuit as one register
EXECUTIONS_PER_PIECE = 100_000  # jobs are cut between pieces


class ProcessorDevice(Device):
    """Counts from a processor. `folder` keeps the job book; `most_qubits` are used at once."""

    def __init__(self, config: DeviceConfig, chip: Chip, service: Service, folder: Path, most_qubits: int) -> None:
        super().__init__(Noise(), config.shots, np.float64)
        self.name, self.config, self.chip, self.most_qubits = config.kind, config, chip, most_qubits
        self.places: dict[int, list[tuple[int, ...]]] = {}  # by qubits of a block, as far as they were used
        calibration, shots = chip.calibration or chip.calibrated, config.shots or 0
        self.jobs = Dispatcher(JobBook(folder), service, config.kind, chip.name, calibration, shots, config.budget_s)
        self.remark = f"processor {chip.name}, calibration of {chip.date}; {chip.left_out}"

    def _prepare(self, blocks: Floats) -> Any:
        n = qubits(blocks.shape[-1])
        places = [place for place in pack(self.chip, n) if not set(place) & set(self.chip.faulty)]
        places = places[: max(1, self.most_qubits // n)]
        if not places:
            raise InputError(f"device.backend={self.chip.name}: no {n} coupled qubits work; {self.chip.left_out}")
        self.places[n] = places
        small = [path_circuit(block, self.config.optimization_level) for block in blocks]
        starts, most = range(0, len(blocks), len(places)), len(blocks)
        groups = [list(range(start, min(start + len(places), most))) for start in starts]
        prepared = []
        for group in groups:
            circuit = packed_circuit([small[j] for j in group], places, self.chip.qubits)
            prepared.append((group, circuit, self._stem(circuit, places[: len(group)])))
        return prepared

    def _stem(self, circuit: Any, places: Sequence[tuple[int, ...]]) -> str:
        """What beside the angles makes a circuit's counts."""
        c = self.config
        words = [c.kind, self.chip.name, places, c.optimization_level, c.options, c.shots, c.repetition]
        return json.dumps([*words, circuit_digest(circuit)], sort_keys=True)

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        raise NotImplementedError("a processor only counts")

    def run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, first: int) -> Floats:
        """Frequencies; the shots of a processor have no seed, so `key` and `first` are not used. Raises InputError if
        the budget is too small, RunFailed for what the service did not do."""
        angles = preparation_angles(np.asarray(units, float))
        step = max(1, min(EXECUTIONS_PER_PIECE, EXECUTIONS_PER_JOB) // self.jobs.shots)
        delay = self.config.options.get("rep_delay_us")
        work = []
        for group, circuit, stem in prepared:
            gates = circuit.count_ops().get("cz", 0)
            seconds = execution_seconds(circuit, None if delay is None else delay * 1e-6)
            rows = np.flatnonzero(mask[:, group].any(axis=1))  # a token whose slices are all zero needs no circuit
            for part in np.split(rows, range(step, len(rows), step)) if len(rows) else []:
                values = angles[np.ix_(part, group)].reshape(len(part), -1)
                name = hashlib.sha256(stem.encode() + values.astype(np.float32).tobytes()).hexdigest()[:32]
                work.append((np.ix_(part, group), Piece(name, circuit, values, gates, seconds)))
        found = self.jobs.collect([piece for _, piece in work])
        out = np.full(units.shape, 1 / units.shape[-1])
        for where, piece in work:
            out[where] = found[piece.key]
        return out

    def record(self) -> dict[str, Any]:
        """Processor, calibration, versions, options, places, and the jobs that the counts came from."""
        c, chip = self.config, self.chip
        self.jobs.learn_usage(self.jobs.used)
        jobs = self.jobs.book.jobs(self.jobs.used)
        known = [job.real_s for job in jobs if job.real_s is not None]
        shown = ("job_id", "state", "attempt", "circuits", "shots", "estimated_s", "allowed_s", "real_s", "why", "tag")
        return {
            "processor": chip.name, "calibration": chip.calibration, "calibration_time": chip.calibrated,
            "qiskit": version("qiskit"), "qiskit_ibm_runtime": version("qiskit-ibm-runtime"), "mode": c.mode.value,
            "optimization_level": c.optimization_level, "repetition": c.repetition, "options": dict(c.options),
            "places": {str(n): places for n, places in self.places.items()}, "left_out": chip.left_out,
            "qpu_jobs": len(jobs), "qpu_seconds": sum(known) if len(known) == len(jobs) else None,
            "qpu_seconds_estimated": sum(job.estimated_s for job in jobs),
            "jobs": [{word: getattr(job, word) for word in shown} for job in jobs],
        }  # fmt: skip


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
    config, folder = setting.config, setting.folder
    if (config.shots or 0) > EXECUTIONS_PER_JOB:
        raise InputError(f"device.shots={config.shots}: a job takes {EXECUTIONS_PER_JOB:,} executions at most")
    if config.kind == "fake":
        backend = fake_backend(config.backend)
        return ProcessorDevice(config, read_chip(backend), FakeService(backend), folder, SIMULATED_QUBITS)
    account = ibm_account()
    chip, backend, kept = choose(account, config, JobBook(folder))
    device = ProcessorDevice(config, chip, IbmService(account, backend, config.mode.value, config.options), folder,
                             chip.qubits)  # fmt: skip
    if kept:
        device.remark = f"{device.remark}; kept for this results folder since it was first asked"
    return device


def choose(account: Any, config: DeviceConfig, book: JobBook) -> tuple[Chip, Any, bool]:
    """Chip and backend that the book keeps for these words and this instance, chosen and kept now if there are none;
    whether they were there."""
    asked = json.dumps([config.kind, config.backend, instance_digest(), config.repetition])
    kept = book.processor(asked)
    backend = ibm_backend(account, kept[0]["name"] if kept else config.backend)
    if kept is None:
        book.keep_processor(asked, backend.name, read_chip(backend).as_dict())
        first = book.processor(asked)  # of whoever was first
        assert first is not None
        chip = Chip.from_dict(first[0])
        return chip, backend if chip.name == backend.name else ibm_backend(account, chip.name), False
    return Chip.from_dict(kept[0]), backend, True
