"""SamplerV2 on real and fake IBM processors: blocks packed onto the chip, angles bound per token, job ids written
before anything is waited for.

One circuit holds as many blocks as the packing; its Q gates are fixed, its preparation angles are parameters, and the
tokens of a call are rows of parameter values of one PUB. Each piece of work has a key (blocks, angles, shots,
processor). Its job id goes to jobs.json and its frequencies, when they arrive, to a file beside it: the same command,
started again, sends nothing twice and goes on where it was. Tokens come from the environment only.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import ParameterVector
from safetensors.numpy import load_file, save_file

from qrun.errors import InputError, RunFailed
from qrun.files import replaced
from qrun.quantum.cache import digest
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import Floats, preparation_angles, qubits
from qrun.quantum.layout import Chip, pack, read_chip
from qrun.quantum.noise import Noise
from qrun.quantum.plan import EXECUTIONS_PER_JOB, JOB_OVERHEAD_S, QUICK_S, path_circuit

FAKES = ("FakeTorino", "FakeMarrakesh", "FakeFez")
SIMULATED_QUBITS = 8  # a fake backend simulates the packed circuit as one register


class Service(Protocol):
    """Where PUBs go. The real one is IBM's; tests and fake backends bring their own."""

    def send(self, pubs: list[Any], shots: int) -> tuple[str, Any]:
        """Start a job; returns its id and a handle."""
        ...

    def wait(self, job_id: str, handle: Any | None) -> Any:
        """The PrimitiveResult of a job, by handle or, in a later process, by id."""
        ...


class SamplerService:
    """SamplerV2 on a backend."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def send(self, pubs: list[Any], shots: int) -> tuple[str, Any]:
        from qiskit_ibm_runtime import SamplerV2

        job = SamplerV2(mode=self.backend).run(pubs, shots=shots)
        return job.job_id(), job


class FakeService(SamplerService):
    """The sampler's local mode on a fake backend. Its jobs end with this process."""

    def wait(self, job_id: str, handle: Any | None) -> Any:
        if handle is None:
            raise LookupError("a local job of another process")
        return handle.result()


class IbmService(SamplerService):
    """A backend of the account in QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE)."""

    def __init__(self, service: Any, backend: Any) -> None:
        super().__init__(backend)
        self.service = service

    def wait(self, job_id: str, handle: Any | None) -> Any:
        return (handle or self.service.job(job_id)).result()


class ProcessorDevice(Device):
    """Counts from a processor. `folder` keeps jobs.json and arrived frequencies; `budget_s` limits the QPU seconds of
    this device's whole life."""

    def __init__(
        self, name: str, chip: Chip, service: Service, shots: int, level: int, budget_s: float | None, folder: Path,
        most_qubits: int,
    ) -> None:  # fmt: skip
        super().__init__(Noise(), shots, np.float64)
        self.name, self.chip, self.service, self.level = name, chip, service, level
        self.budget_s, self.folder, self.most_qubits = budget_s, folder, most_qubits
        self.spent_s, self.sent = 0.0, 0
        self.remark = f"processor {chip.name}, calibration of {chip.date}; {chip.left_out}"

    def _prepare(self, blocks: Floats) -> Any:
        n = qubits(blocks.shape[-1])
        places = pack(self.chip, n)[: max(1, self.most_qubits // n)]
        small = [path_circuit(block, self.level) for block in blocks]
        starts, most = range(0, len(blocks), len(places)), len(blocks)
        groups = [list(range(start, min(start + len(places), most))) for start in starts]
        circuits = [packed_circuit([small[j] for j in group], places, self.chip.qubits) for group in groups]
        return digest(blocks), list(zip(groups, circuits, strict=True))

    def _probabilities(self, prepared: Any, units: Floats, mask: np.ndarray) -> Floats:
        raise NotImplementedError("a processor only counts")

    def run(self, prepared: Any, units: Floats, mask: np.ndarray, key: int, first: int) -> Floats:
        """Frequencies; the shots of a processor have no seed, so `key` and `first` are not used."""
        blocks_digest, groups = prepared
        angles = preparation_angles(np.asarray(units, float))
        out = np.full(units.shape, 1 / units.shape[-1])
        work = []
        for group, circuit in groups:
            rows = np.flatnonzero(mask[:, group].any(axis=1))  # a token whose slices are all zero needs no circuit
            if len(rows):
                work.append((group, circuit, rows, angles[np.ix_(rows, group)].reshape(len(rows), -1)))
        for batch in self._batches(work):
            name = digest(np.concatenate([values.ravel() for _, _, _, values in batch]))
            file, pubs = f"{self.chip.name}-{self.shots}-{blocks_digest}-{name}", [(c, v) for _, c, _, v in batch]
            for (group, _, rows, _), found in zip(batch, self._fetch(file, pubs), strict=True):
                out[np.ix_(rows, group)] = found
        return out

    def _batches(self, work: list[Any]) -> list[list[Any]]:
        """Cut the work so that no job exceeds the executions limit: rows are split, PUBs are gathered."""
        limit = max(1, EXECUTIONS_PER_JOB // (self.shots or 1))
        batches: list[list[Any]] = [[]]
        left = limit
        for group, circuit, rows, values in work:
            start = 0
            while start < len(rows):
                if left == 0:
                    batches.append([])
                    left = limit
                part = slice(start, start + left)
                batches[-1].append((group, circuit, rows[part], values[part]))
                taken = len(rows[part])
                start, left = start + taken, left - taken
        return [batch for batch in batches if batch]

    def _fetch(self, key: str, pubs: list[tuple[Any, Floats]]) -> list[Floats]:
        path = self.folder / f"{key}.safetensors"
        if path.is_file():
            return [value for _, value in sorted(load_file(path).items(), key=lambda item: int(item[0]))]
        jobs = read_jobs(self.folder)
        handle = None
        if key not in jobs:
            seconds = JOB_OVERHEAD_S + QUICK_S * sum(len(v) for _, v in pubs) * (self.shots or 0)
            if self.budget_s is not None and self.spent_s + seconds > self.budget_s:
                needed = f"this job needs about {seconds:.0f} QPU seconds after {self.spent_s:.0f} s so far"
                raise InputError(f"device.budget_s={self.budget_s:g}: {needed}; it was not sent")
            with_shots = [(circuit, values, self.shots) for circuit, values in pubs]
            job_id, handle = self.service.send(with_shots, self.shots or 0)
            self.spent_s, self.sent = self.spent_s + seconds, self.sent + 1
            entry = {"job_id": job_id, "backend": self.chip.name, "pubs": len(pubs), "shots": self.shots}
            jobs = write_job(self.folder, key, {**entry, "qpu_seconds": seconds})
        job_id = jobs[key]["job_id"]
        try:
            result = self.service.wait(job_id, handle)
        except LookupError:  # a local simulation that ended with its process
            drop_job(self.folder, key)
            return self._fetch(key, pubs)
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise RunFailed(f"job {job_id} on {self.chip.name}: {why}; the same command goes on") from error
        return keep_counts(path, result, len(pubs))


def keep_counts(path: Path, result: Any, pubs: int) -> list[Floats]:
    """Frequencies of a job's PUBs, written to `path` at once."""
    found = [np.ascontiguousarray(frequencies(result[i])) for i in range(pubs)]
    with replaced(path) as file:
        save_file({str(i): value for i, value in enumerate(found)}, file)
    return found


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


def frequencies(pub: Any) -> Floats:
    """Frequencies [rows, blocks, 2^n] of one PUB's registers."""
    blocks = []
    for name in sorted(name for name in pub.data if name.startswith("c")):
        bits = pub.data[name]
        outcomes = bits.array[..., 0] if bits.num_bits <= 8 else bits.array[..., -1]
        blocks.append((outcomes[..., None] == np.arange(2**bits.num_bits)).mean(axis=-2))
    return np.stack(blocks, axis=-2)


def read_jobs(folder: Path) -> dict[str, Any]:
    path = folder / "jobs.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_job(folder: Path, key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Add a job to jobs.json, atomically and before it is waited for."""
    return _replace(folder, {**read_jobs(folder), key: entry})


def drop_job(folder: Path, key: str) -> None:
    _replace(folder, {k: v for k, v in read_jobs(folder).items() if k != key})


def _replace(folder: Path, jobs: dict[str, Any]) -> dict[str, Any]:
    with replaced(folder / "jobs.json") as file:
        file.write_text(json.dumps(jobs, indent=1) + "\n")
    return jobs


def fake_backend(name: str) -> Any:
    """A recorded backend by class name. Raises InputError naming those there are."""
    if name not in FAKES:
        raise InputError(f"device.backend={name}: recorded backends are {', '.join(FAKES)}")
    from qiskit_ibm_runtime import fake_provider

    return getattr(fake_provider, name)()


def ibm_service() -> Any:
    """The account of the environment. Raises InputError saying what is missing; the token is never shown."""
    token = os.environ.get("QISKIT_IBM_TOKEN")
    if not token:
        how = "set QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE) in the environment, or use device=fake"
        raise InputError(f"device=ibm: no account; {how}")
    from qiskit_ibm_runtime import QiskitRuntimeService

    instance = os.environ.get("QISKIT_IBM_INSTANCE")
    try:
        return QiskitRuntimeService(channel="ibm_quantum_platform", token=token, instance=instance)
    except Exception as error:  # the client raises a different class for each way of being refused
        why = f"IBM refused or could not be reached ({type(error).__name__})"
        check = "check QISKIT_IBM_TOKEN (it may have expired), QISKIT_IBM_INSTANCE and the network"
        raise InputError(f"device=ibm: {why}; {check}") from error


def open_backend(kind: str, name: str | None) -> tuple[Any, Service]:
    """Backend and service of device=fake or device=ibm."""
    if kind == "fake":
        backend = fake_backend(name or "FakeMarrakesh")
        return backend, FakeService(backend)
    service = ibm_service()
    try:
        backend = service.backend(name) if name else service.least_busy(operational=True, simulator=False)
    except Exception as error:
        raise InputError(f"device.backend={name}: not available to this account ({type(error).__name__})") from error
    return backend, IbmService(service, backend)


def open_processor(setting: Setting) -> ProcessorDevice:
    """The device of kind fake or ibm."""
    config, folder = setting.config, setting.folder
    backend, service = open_backend(config.kind, config.backend)
    chip = read_chip(backend)
    most, level = SIMULATED_QUBITS if config.kind == "fake" else chip.qubits, config.optimization_level
    return ProcessorDevice(config.kind, chip, service, config.shots or 0, level, config.budget_s, folder, most)
