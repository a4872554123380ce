"""The hardware path up to the network call.

Packing, parametric circuits, jobs, budget, fetching, on recorded backends.
"""

import json

import numpy as np
import pytest
from qiskit.quantum_info import Statevector
from quantum_support import rotations, unit_slices

from qrun.config.schema import DeviceConfig
from qrun.errors import InputError, RunFailed
from qrun.quantum import hardware
from qrun.quantum.devices.base import Setting
from qrun.quantum.hardware import (
    FakeService,
    ProcessorDevice,
    fake_backend,
    frequencies,
    ibm_service,
    open_processor,
    packed_circuit,
    read_jobs,
)
from qrun.quantum.layout import Chip, read_chip
from qrun.quantum.noise import Noise
from qrun.quantum.plan import path_circuit

LINE = Chip("line", 4, {(0, 1): 0.0, (1, 2): 0.0, (2, 3): 0.0}, [0.0] * 4)


class ExactService:
    """Simulates PUBs exactly and answers with the nearest counts; jobs stay known by id."""

    def __init__(self, fail_first=False):
        self.jobs, self.waited, self.fail = {}, [], fail_first

    def send(self, pubs, shots):
        job = f"job-{len(self.jobs)}"
        self.jobs[job] = [self._run(circuit, values, shots) for circuit, values, _ in pubs]
        return job, job

    def wait(self, job_id, handle):
        self.waited.append(job_id)
        if self.fail:
            self.fail = False
            raise ConnectionError("the line is down")
        return self.jobs[job_id]

    def _run(self, circuit, values, shots):
        from qiskit.primitives.containers import BitArray, DataBin, SamplerPubResult

        registers = {r.name: [[] for _ in values] for r in circuit.cregs}
        for row, angles in enumerate(values):
            bound = circuit.assign_parameters(angles)
            for register in circuit.cregs:
                wires = {
                    circuit.find_bit(i.clbits[0]).index: circuit.find_bit(i.qubits[0]).index
                    for i in circuit.data
                    if i.operation.name == "measure"
                }
                qubits = [wires[circuit.find_bit(c).index] for c in register]
                p = Statevector(bound.remove_final_measurements(inplace=False)).probabilities(qubits)
                counts = np.round(p * shots).astype(int)
                counts[counts.argmax()] += shots - counts.sum()
                registers[register.name][row] = {
                    format(k, f"0{len(qubits)}b"): int(v) for k, v in enumerate(counts) if v
                }
        bits = {name: BitArray.from_counts(rows, num_bits=len(next(iter(rows[0])))) for name, rows in registers.items()}
        return SamplerPubResult(DataBin(**bits, shape=(len(values),)))


def device(tmp_path, service=None, shots=1000, budget=None, qubits=4):
    return ProcessorDevice("ibm", LINE, service or ExactService(), shots, 3, budget, tmp_path / "qpu", qubits)


def run(d, blocks, units, mask=None):
    return d.run(d.prepare(blocks), units, np.ones(units.shape[:2], bool) if mask is None else mask, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_packed_circuits_measure_every_block_of_every_token(tmp_path, n):
    blocks, units = rotations(n, 3, seed=n), unit_slices(n, 4, 3, seed=n)
    d = device(tmp_path, shots=1_000_000)
    np.testing.assert_allclose(run(d, blocks, units), np.einsum("jab,njb->nja", blocks, units) ** 2, atol=1e-4)
    assert d.sent == 1 and len(d.prepare(blocks)[1]) == (1 if n == 1 else 2)


def test_three_qubit_blocks_are_routed_on_a_path(tmp_path):
    block, unit = rotations(3, 1)[0], unit_slices(3, 1, 1)
    small = path_circuit(block)
    assert {
        tuple(sorted(small.find_bit(q).index for q in i.qubits)) for i in small.data if i.operation.name == "cz"
    } <= {(0, 1), (1, 2)}
    np.testing.assert_allclose(
        run(device(tmp_path, shots=1_000_000), block[None], unit)[0, 0], (block @ unit[0, 0]) ** 2, atol=1e-4
    )


def test_packed_circuits_are_in_the_processors_instruction_set():
    chip = read_chip(fake_backend("FakeTorino"))
    from qrun.quantum.layout import pack

    places = pack(chip, 2)[:5]
    whole = packed_circuit([path_circuit(b) for b in rotations(2, 5)], places, chip.qubits)
    assert whole.num_parameters == 15 and set(whole.count_ops()) <= {"cz", "sx", "x", "rz", "measure", "barrier"}
    pairs = {tuple(sorted(whole.find_bit(q).index for q in i.qubits)) for i in whole.data if i.operation.name == "cz"}
    assert pairs == {tuple(sorted(p)) for p in places}


def test_job_ids_are_written_before_waiting_and_an_interrupted_run_sends_nothing_twice(tmp_path):
    service = ExactService(fail_first=True)
    blocks, units = rotations(2, 3), unit_slices(2, 4, 3)
    with pytest.raises(RunFailed, match=r"job job-0 on line: the line is down; the same command goes on"):
        run(device(tmp_path, service), blocks, units)
    (entry,) = read_jobs(tmp_path / "qpu").values()
    assert entry["job_id"] == "job-0" and entry["shots"] == 1000
    again = device(tmp_path, service)
    found = run(again, blocks, units)
    assert again.sent == 0 and service.waited == ["job-0", "job-0"]
    third = device(tmp_path, service=None)
    np.testing.assert_array_equal(run(third, blocks, units), found)
    assert third.sent == 0


def test_a_budget_stops_a_job_before_it_is_sent(tmp_path):
    service = ExactService()
    d = device(tmp_path, service, budget=5)
    run(d, rotations(2, 2), unit_slices(2, 2, 2))  # 2 s + 2 x 1000 x 0.00035 s
    with pytest.raises(
        InputError, match=r"device.budget_s=5: this job needs about 4 QPU seconds after 3 s so far; it was not sent"
    ):
        run(d, rotations(2, 2), unit_slices(2, 6, 2))
    assert list(service.jobs) == ["job-0"]


def test_jobs_are_cut_at_the_executions_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "EXECUTIONS_PER_JOB", 3000)
    service = ExactService()
    blocks, units = rotations(2, 4), unit_slices(2, 4, 4)
    np.testing.assert_allclose(
        run(device(tmp_path, service), blocks, units), np.einsum("jab,njb->nja", blocks, units) ** 2, atol=2e-3
    )
    sizes = [sum(r.data.c000.shape[0] for r in results) for results in service.jobs.values()]
    assert sizes == [3, 3, 2]  # 4 tokens x 2 packed circuits


def test_tokens_of_zero_slices_are_not_sent(tmp_path):
    service = ExactService()
    mask = np.ones((4, 2), bool)
    mask[1] = False
    run(device(tmp_path, service), rotations(2, 2), unit_slices(2, 4, 2), mask)
    assert service.jobs["job-0"][0].data.c000.shape[0] == 3


@pytest.mark.slow
def test_a_recorded_backend_runs_the_whole_path_offline(tmp_path):
    d = open_processor(Setting(DeviceConfig("fake", 2000, "FakeMarrakesh"), Noise(), tmp_path))
    blocks, units = rotations(2, 2), unit_slices(2, 3, 2)
    found = run(d, blocks, units)
    np.testing.assert_allclose(found.sum(-1), 1)
    np.testing.assert_allclose(found, np.einsum("jab,njb->nja", blocks, units) ** 2, atol=0.12)
    entry = json.loads((tmp_path / "jobs.json").read_text())
    assert isinstance(d.service, FakeService) and next(iter(entry.values()))["backend"] == "fake_marrakesh"


def test_frequencies_read_every_register_in_order():
    from types import SimpleNamespace

    from qiskit.primitives.containers import BitArray, DataBin

    data = DataBin(c001=BitArray.from_counts({"11": 4}), c000=BitArray.from_counts({"00": 3, "10": 1}), shape=())
    assert frequencies(SimpleNamespace(data=data)).tolist() == [[0.75, 0, 0.25, 0], [0, 0, 0, 1]]


def test_missing_and_refused_accounts_say_what_to_do_and_never_show_the_token(monkeypatch):
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    with pytest.raises(InputError, match=r"no account; set QISKIT_IBM_TOKEN"):
        ibm_service()
    import qiskit_ibm_runtime

    def refuse(**words):
        raise PermissionError(f"invalid token {words['token']}")

    monkeypatch.setenv("QISKIT_IBM_TOKEN", "secret-token")
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", refuse)
    with pytest.raises(InputError, match="it may have expired") as caught:
        ibm_service()
    assert "secret" not in str(caught.value)


def test_an_unknown_recorded_backend_is_named():
    with pytest.raises(InputError, match=r"recorded backends are FakeTorino, FakeMarrakesh, FakeFez"):
        fake_backend("FakeNowhere")
