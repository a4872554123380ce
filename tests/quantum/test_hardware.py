"""The hardware path up to the network call.

Packing, parametric circuits, keys, jobs, the choice of a processor, its record, on recorded backends.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from qiskit.primitives.containers import BitArray, DataBin
from qiskit.quantum_info import Statevector
from quantum_support import chip, rotations, unit_slices

from qrun.adapters.executor import CircuitExecutor
from qrun.config.compose import compose
from qrun.config.devices import DeviceConfig, EstimateConfig, Estimator, Mode, Sign
from qrun.errors import InputError, RunFailed
from qrun.quantum import dispatch, hardware, services
from qrun.quantum.calibration import Calibration, calibration, read_calibration
from qrun.quantum.circuits import to_qiskit
from qrun.quantum.devices.base import Setting
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.dispatch import frequencies
from qrun.quantum.hardware import (
    SIMULATED_QUBITS,
    ProcessorDevice,
    choose,
    circuit_digest,
    open_processor,
    packed_circuit,
)
from qrun.quantum.jobs import JobBook
from qrun.quantum.layout import pack
from qrun.quantum.noise import Noise
from qrun.quantum.services import FakeService, IbmService, JobFailed, Refused, UnknownJob, fake_backend, ibm_account
from qrun.quantum.wiring import Wiring

LINE = chip("line", {(0, 1): 1e-3, (1, 2): 1e-3, (2, 3): 1e-3}, [0.0] * 4, id="c7")


class ExactService:
    """Simulates PUBs exactly and answers with the nearest counts; jobs stay known by id."""

    account = "mine"

    def __init__(self, fail_first=False):
        self.jobs, self.orders, self.waited, self.fail = {}, [], [], fail_first

    def send(self, order):
        job = f"job-{len(self.jobs)}"
        self.jobs[job] = [self._run(*pub) for pub in order.pubs]
        self.orders.append(order)
        return job, job

    def close(self):
        pass

    def find(self, tag, age):
        return None

    def usage(self, job_id, handle):
        return 2.5

    def wait(self, job_id, handle):
        self.waited.append(job_id)
        if self.fail:
            self.fail = False
            raise ConnectionError("the line is down")
        return self.jobs[job_id]

    def _run(self, circuit, values, shots):
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
        return SimpleNamespace(data=DataBin(**bits, shape=(len(values),)))


def device(tmp_path, service=None, calibrated=LINE, qubits=4, **words):
    config = DeviceConfig("ibm", **{"shots": 1000, "keep": 1.0, **words})
    return ProcessorDevice(config, calibrated, service or ExactService(), tmp_path / "qpu", qubits)


def circuits(blocks):
    wired = Wiring(Noise()).circuits(blocks)
    return [to_qiskit(wired, j) for j in range(len(blocks))]


def run(d, blocks, units, mask=None):
    return d.run(
        d.prepare(blocks), units, np.ones(units.shape[:2], bool) if mask is None else mask, 0, np.arange(len(units))
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_packed_circuits_measure_every_block_of_every_token(tmp_path, n):
    blocks, units = rotations(n, 3, seed=n), unit_slices(n, 4, 3, seed=n)
    d = device(tmp_path, shots=1_000_000)
    np.testing.assert_allclose(run(d, blocks, units), np.einsum("jab,njb->nja", blocks, units) ** 2, atol=1e-4)
    assert d.jobs.sent == 1 and len(d.prepare(blocks).groups) == (1 if n == 1 else 2)


@pytest.mark.slow
def test_readout_errors_are_counted_on_the_places_in_use_once_for_all_sites(tmp_path):
    """Against the recorded calibration, qubit by qubit, in the order of a slice's index."""
    config = DeviceConfig("fake", shots=8192, backend="FakeMarrakesh", keep=0.8)
    d = open_processor(Setting(config, Noise(), tmp_path / "qpu"))
    prepared = d.prepare(rotations(2, 5))
    said, counted = d.confusion(prepared, 4, None), d.confusion(prepared, 4, 8 * 8192)
    assert said.shape == counted.shape == (5, 2, 2, 2) and said[:, :, 1, 0].std() > 1e-3
    np.testing.assert_allclose(counted, said, atol=5 * np.sqrt(0.03 / 65536))
    np.testing.assert_array_equal(counted[4], counted[0])  # four places in a simulated register of eight qubits
    sent = d.jobs.sent
    again = d.confusion(d.prepare(rotations(2, 5, seed=1)), 4, 8 * 8192)
    np.testing.assert_array_equal(again, counted)
    assert d.jobs.sent == sent == 1


@pytest.mark.long
def test_calibrated_estimates_of_a_processor_are_those_of_the_simulator(tmp_path):
    """Both settings and the known slices in one job; then the readout circuits."""
    blocks = torch.from_numpy(rotations(2, 4))
    blocks = torch.linalg.matrix_exp(0.1 * (blocks - blocks.mT))
    slices = torch.from_numpy(unit_slices(2, 24, 4)).float()
    config, estimate = DeviceConfig("fake", shots=4096, backend="FakeMarrakesh"), EstimateConfig(Estimator.calibrated)
    fake = open_processor(Setting(config, Noise(), tmp_path / "qpu"))
    chip = Noise(name="FakeMarrakesh", calibration="FakeMarrakesh")
    noisy = NoisyDevice(Wiring(chip, keep=0.8, room=SIMULATED_QUBITS), 4096)
    found = []
    for device in (fake, noisy):
        executor = CircuitExecutor(device, Sign.two_settings, 0, estimate=estimate)
        executor.site("x")(blocks, slices)
        found.append(executor.statistics.summary())
    assert fake.jobs.sent == 2
    assert found[0]["survival"] == pytest.approx(found[1]["survival"], abs=0.01)
    assert found[0]["relative_error"] == pytest.approx(found[1]["relative_error"], rel=0.2)


@pytest.mark.slow
def test_three_qubit_blocks_are_routed_on_a_path(tmp_path):
    block, unit = rotations(3, 1)[0], unit_slices(3, 1, 1)
    (small,) = circuits(block[None])
    assert {
        tuple(sorted(small.find_bit(q).index for q in i.qubits)) for i in small.data if i.operation.name == "cz"
    } <= {(0, 1), (1, 2)}
    np.testing.assert_allclose(
        run(device(tmp_path, shots=1_000_000), block[None], unit)[0, 0], (block @ unit[0, 0]) ** 2, atol=1e-4
    )


def test_packed_circuits_are_in_the_processors_instruction_set():
    found = calibration("FakeTorino")
    places = pack(found, 2)[:5]
    whole = packed_circuit(circuits(rotations(2, 5)), places, found.size)
    assert whole.num_parameters == 15 and set(whole.count_ops()) <= {"cz", "sx", "x", "rz", "measure", "barrier"}
    pairs = {tuple(sorted(whole.find_bit(q).index for q in i.qubits)) for i in whole.data if i.operation.name == "cz"}
    assert pairs == {tuple(sorted(p)) for p in places}


def test_an_interrupted_run_sends_nothing_twice(tmp_path):
    service = ExactService(fail_first=True)
    blocks, units = rotations(2, 3), unit_slices(2, 4, 3)
    with pytest.raises(RunFailed, match=r"job job-0 on line: the line is down; the same command goes on"):
        run(device(tmp_path, service), blocks, units)
    (job,) = JobBook(tmp_path / "qpu").jobs()
    assert (job.job_id, job.state, job.shots, job.processor, job.calibration) == ("job-0", "sent", 1000, "line", "c7")
    again = device(tmp_path, service)
    found = run(again, blocks, units)
    assert again.jobs.sent == 0 and service.waited == ["job-0", "job-0"]
    third = device(tmp_path, service=None)
    np.testing.assert_array_equal(run(third, blocks, units), found)
    assert third.jobs.sent == 0


def test_a_key_is_all_that_makes_the_counts(tmp_path):
    service, blocks, units = ExactService(), rotations(2, 1), unit_slices(2, 1, 1)

    def sent(units=units, blocks=blocks, **words):
        d = device(tmp_path, service, **words)
        run(d, blocks, units)
        return d.jobs.sent

    other = chip("line", {(1, 2): 0.0}, [0.0] * 4)
    assert sent() == 1 and sent() == 0
    assert sent(repetition=1) == 1 and sent(repetition=1) == 0
    assert sent(circuit="qiskit") == 1 and sent(shots=999) == 1
    assert sent(options={"dynamical_decoupling": "XX"}) == 1 and sent(options={"gate_twirling": True}) == 1
    assert sent(options={"gate_twirling": False}) == 0  # says what is the case anyway
    assert sent(calibrated=other) == 1 and sent(calibrated=replace(LINE, name="row")) == 1
    assert sent(units=unit_slices(2, 1, 1, seed=5)) == 1 and sent(blocks=rotations(2, 1, seed=5)) == 1
    assert sent(mode=Mode.batch) == 0 and sent(budget_s=1000) == 0


def test_the_digest_of_a_circuit_sees_operations_qubits_bits_and_angles():
    small = circuits(rotations(2, 2))
    whole = [packed_circuit(small, [(0, 1), (2, 3)], 4) for _ in range(2)]
    assert circuit_digest(whole[0]) == circuit_digest(whole[1])
    others = [
        packed_circuit(small, [(0, 1), (3, 2)], 4), packed_circuit(small[::-1], [(0, 1), (2, 3)], 4),
        packed_circuit(small[:1], [(0, 1)], 4),
    ]  # fmt: skip
    assert len({circuit_digest(circuit) for circuit in [whole[0], *others]}) == 4


def test_jobs_are_cut_by_executions_and_by_gates(tmp_path, monkeypatch):
    service, blocks, units = ExactService(), rotations(2, 4), unit_slices(2, 4, 4)
    exact = np.einsum("jab,njb->nja", blocks, units) ** 2

    def rows():
        return [sum(len(values) for _, values, _ in order.pubs) for order in service.orders]

    monkeypatch.setattr(hardware, "EXECUTIONS_PER_PIECE", 1000)
    monkeypatch.setattr(dispatch, "EXECUTIONS_PER_JOB", 3000)
    np.testing.assert_allclose(run(device(tmp_path, service), blocks, units), exact, atol=2e-3)
    assert rows() == [3, 3, 2]  # 4 tokens x 2 packed circuits
    monkeypatch.undo()
    monkeypatch.setattr(dispatch, "GATES_PER_JOB", 6)  # of one packed circuit
    service.orders.clear()
    np.testing.assert_allclose(run(device(tmp_path, service, repetition=1), blocks, units), exact, atol=2e-3)
    assert rows() == [4, 4] and len({order.tag for order in service.orders}) == 2


def test_readout_circuits_are_cut_and_estimated_like_all_others(tmp_path, monkeypatch):
    for module, most in ((hardware, "EXECUTIONS_PER_PIECE"), (dispatch, "EXECUTIONS_PER_JOB")):
        monkeypatch.setattr(module, most, 3000)
    service = ExactService()
    d = device(tmp_path, service, options={"rep_delay_us": 1000})
    found = d.confusion(d.prepare(rotations(2, 2)), 4, 8000)
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(2), (2, 2, 2, 2)))
    assert [len(values) for order in service.orders for _, values, _ in order.pubs] == 2 * [3, 3, 2]
    assert d.record()["qpu_seconds_estimated"] >= 2 * 8000 * 1000e-6


def test_tokens_of_zero_slices_are_not_sent(tmp_path):
    service = ExactService()
    mask = np.ones((4, 2), bool)
    mask[1] = False
    run(device(tmp_path, service), rotations(2, 2), unit_slices(2, 4, 2), mask)
    assert service.jobs["job-0"][0].data.c000.shape[0] == 3


def test_the_record_tells_where_the_counts_come_from(tmp_path):
    d = device(tmp_path, options={"rep_delay_us": 100}, mode=Mode.batch)
    run(d, rotations(2, 2), unit_slices(2, 2, 2))
    facts = json.loads(json.dumps(d.record()))
    assert facts["processor"] == "line" and facts["calibration"] == "c7" and facts["options"] == {"rep_delay_us": 100}
    assert sorted(facts["places"]["2"]) == [[0, 1], [2, 3]] and facts["mode"] == "batch" and facts["qiskit"]
    assert facts["qpu_jobs"] == 1 and facts["qpu_seconds"] == 2.5
    assert facts["qpu_seconds_estimated"] == pytest.approx(2 + 2 * 1000 * 200e-6)
    assert facts["jobs"][0]["job_id"] == "job-0" and facts["jobs"][0]["state"] == "done"


def test_dead_qubits_run_no_block(tmp_path):
    dead = chip("line", {(2, 3): 0.0}, [0.0] * 4, left_out=(1,))
    service = ExactService()
    run(device(tmp_path, service, dead), rotations(1, 3), unit_slices(1, 1, 3))
    circuit = service.orders[0].pubs[0][0]
    assert {circuit.find_bit(i.qubits[0]).index for i in circuit.data if i.operation.name == "measure"} == {0, 2, 3}
    with pytest.raises(InputError, match=r"adapter.dim=8: line has no 3 coupled qubits"):
        run(device(tmp_path, service, dead), rotations(3, 1), unit_slices(3, 1, 1))


class Error:
    def __init__(self, error):
        self.error, self.duration = error, 36e-9


def test_what_does_not_work_on_a_chip_is_left_out_and_named():
    pairs = {(0, 1): 0.01, (1, 2): None, (2, 3): 0.6, (3, 4): 0.01, (4, 5): 0.02, (5, 6): 0.01, (6, 7): 0.01}
    pairs |= {(8, 9): 0.01, (9, 10): 0.01, (10, 9): float("nan")}
    target = {
        "cz": {pair: Error(error) for pair, error in pairs.items()},
        "sx": {(q,): Error(1e-4) for q in range(12) if q != 4},
        "measure": {(q,): Error({7: 0.5, 11: float("nan")}.get(q, 0.01)) for q in range(12) if q != 0},
    }
    properties = SimpleNamespace(
        is_qubit_operational=lambda q: True, is_gate_operational=lambda gate, pair: pair != (5, 6),
        qubit_property=lambda q: {},
        last_update_date="2026-11-01 10:00",
    )  # fmt: skip
    named = type("Target", (dict,), {"operation_names": ["cz", "sx", "measure"]})(target)
    backend = SimpleNamespace(name="x", num_qubits=12, target=named, properties=lambda: properties, calibration_id="c1")
    found = read_calibration(backend)
    assert sorted(found.qubits) == [1, 2, 3, 5, 6, 8, 9, 10] and found.couplers.keys() == {(8, 9)}
    assert found.left_out["9-10"] == found.left_out["11"] == "error nan"
    assert found.left_out["0"] == found.left_out["4"] == found.left_out["5-6"] == "not operational"
    assert found.left_out["1-2"] == "no error reported" and found.left_out["2-3"] == "error 0.6"
    assert (found.id, found.date) == ("c1", "2026-11-01 10:00") and "1-2 (no error" in found.words
    assert Calibration.from_dict(json.loads(json.dumps(found.as_dict())), "x") == found
    named.operation_names = ["ecr"]
    with pytest.raises(InputError, match="made of CZ gates"):
        read_calibration(backend)


def test_a_qubit_that_the_runtime_drops_is_left_out():
    from qiskit_ibm_runtime.models import BackendProperties
    from qiskit_ibm_runtime.utils.backend_converter import convert_to_target

    source = fake_backend("FakeTorino")
    configuration = source.configuration() if hasattr(source, "configuration") else source._conf_dict
    values = source.properties().to_dict()
    values["qubits"][5].append({"date": values["last_update_date"], "name": "operational", "unit": "", "value": 0})
    properties = BackendProperties.from_dict(values)
    if isinstance(configuration, dict):
        pytest.skip("this runtime keeps no configuration of its recorded backends")
    target = convert_to_target(configuration, properties)
    found = read_calibration(SimpleNamespace(name="t", num_qubits=133, target=target, properties=lambda: properties))
    assert found.left_out["5"] == "not operational" and not any(5 in pair for pair in found.couplers)


class Account:
    """Takes the first of its processors for the least busy one."""

    def __init__(self, *names):
        self.names, self.backends = list(names), {}

    def backend(self, name):
        if name not in self.names:
            raise LookupError(name)
        backend = fake_backend("FakeTorino")
        backend.name = name
        return backend

    def least_busy(self, **words):
        return self.backend(self.names[0])


@pytest.mark.slow
def test_the_least_busy_processor_is_chosen_once_with_its_calibration(tmp_path, monkeypatch):
    monkeypatch.delenv("QISKIT_IBM_INSTANCE", raising=False)
    config, book = DeviceConfig("ibm"), JobBook(tmp_path)
    chosen, backend, kept = choose(Account("one", "two"), config, book)
    assert (chosen.name, backend.name, kept) == ("one", "one", False)
    monkeypatch.setattr(hardware, "read_calibration", lambda backend: pytest.fail("read again"))
    again, backend, kept = choose(Account("two", "one"), config, book)
    assert (again, backend.name, kept) == (chosen, "one", True)
    with pytest.raises(InputError, match=r"device.backend=one: not available"):
        choose(Account("two"), config, book)
    monkeypatch.undo()
    assert choose(Account("two", "one"), replace(config, repetition=1), book)[0].name == "two"
    assert choose(Account("one", "two"), replace(config, backend="two"), book)[0].name == "two"
    monkeypatch.setenv("QISKIT_IBM_INSTANCE", "crn:other")
    assert choose(Account("two", "one"), config, book)[0].name == "two"


def test_another_start_goes_on_with_the_processor_of_the_first(tmp_path, monkeypatch):
    class Zeros:
        """Every register answers 0."""

        account = "mine"

        def __init__(self, account, backend, mode, options):
            self.backend, self.close = backend, lambda: None

        def send(self, order):
            return "job-1", order

        def wait(self, job_id, order):
            return [
                SimpleNamespace(
                    data={r.name: SimpleNamespace(array=np.zeros((len(v), shots, 1), np.uint8), num_bits=r.size)
                          for r in circuit.cregs}
                )
                for circuit, v, shots in order.pubs
            ]  # fmt: skip

        def usage(self, job_id, order):
            return 3.0

    monkeypatch.setattr(hardware, "IbmService", Zeros)
    sent, remarks = [], []
    for names in (("one", "two"), ("two", "one")):
        monkeypatch.setattr(hardware, "ibm_account", lambda names=names: Account(*names))
        d = open_processor(Setting(DeviceConfig("ibm", 100, mode=Mode.batch), Noise(), tmp_path))
        run(d, rotations(2, 3), unit_slices(2, 2, 3))
        sent.append(d.jobs.sent)
        remarks.append(d.remark)
        assert d.record()["processor"] == d.jobs.service.backend.name == "one" and d.record()["qpu_seconds"] == 3
    assert sent == [1, 0] and "kept" not in remarks[0] and "kept" in remarks[1]


@pytest.mark.slow
def test_a_recorded_backend_runs_the_whole_path_offline(tmp_path):
    d = open_processor(Setting(DeviceConfig("fake", 2000, "FakeMarrakesh"), Noise(), tmp_path))
    blocks, units = rotations(2, 2), unit_slices(2, 3, 2)
    found = run(d, blocks, units)
    np.testing.assert_allclose(found.sum(-1), 1)
    np.testing.assert_allclose(found, np.einsum("jab,njb->nja", blocks, units) ** 2, atol=0.12)
    facts = d.record()
    assert isinstance(d.jobs.service, FakeService) and facts["processor"] == "fake_marrakesh"
    assert facts["calibration_time"].startswith("2025-02-26") and facts["jobs"][0]["state"] == "done"


def test_frequencies_read_every_register_in_order():
    data = DataBin(c001=BitArray.from_counts({"11": 4}), c000=BitArray.from_counts({"00": 3, "10": 1}), shape=())
    assert frequencies(SimpleNamespace(data=data)).tolist() == [[0.75, 0, 0.25, 0], [0, 0, 0, 1]]


class Runtime:
    """qiskit_ibm_runtime as far as sending goes; `error` is raised by run."""

    def __init__(self, error=None):
        self.error, self.opened, self.closed, self.runs = error, [], 0, []
        self.Batch, self.Session = self._container("batch"), self._container("session")

    def _container(self, kind):
        def make(backend, max_time=None):
            self.opened.append((kind, max_time))
            return SimpleNamespace(kind=kind, close=lambda: setattr(self, "closed", self.closed + 1))

        return make

    def SamplerV2(self, mode, options):
        def run(pubs):
            if self.error:
                raise self.error
            self.runs.append((mode, options))
            return SimpleNamespace(job_id=lambda: f"id-{len(self.runs)}")

        return SimpleNamespace(run=run)


def order(seconds=9, left=100):
    return services.Order("tag-1", [], seconds, 1, left)


def test_options_modes_tags_and_limits_reach_the_sampler(monkeypatch):
    rt = Runtime()
    monkeypatch.setattr(services, "runtime", lambda: rt)
    words = {"dynamical_decoupling": "XY4", "measure_twirling": True, "rep_delay_us": 100}
    for mode in ("job", "batch", "session"):
        service = IbmService(None, "chip", mode, words)
        assert [service.send(order())[0] for _ in range(2)]
        service.close()
    assert rt.opened == [("batch", None), ("session", 100)] and rt.closed == 2 and len(rt.runs) == 6
    assert rt.runs[0][0] == "chip" and rt.runs[2][0] is rt.runs[3][0] and rt.runs[4][0].kind == "session"
    options = rt.runs[0][1]
    assert options["max_execution_time"] == 9 and options["environment"] == {"job_tags": ["tag-1"]}
    assert options["dynamical_decoupling"] == {"enable": True, "sequence_type": "XY4"}
    assert options["twirling"] == {"enable_gates": False, "enable_measure": True}
    assert options["execution"]["rep_delay"] == pytest.approx(1e-4)
    from qiskit_ibm_runtime.options import SamplerOptions

    SamplerOptions(**options)  # they are words that the client has


def test_errors_of_sending_are_told_apart(monkeypatch):
    class Status(Exception):
        def __init__(self, status):
            self.status_code = status

    def behind(status):
        try:
            try:
                raise Status(status)
            except Status:
                raise RuntimeError("Failed to run program: no") from None
        except RuntimeError as error:
            return error

    for error, refused in [
        (behind(403), True), (behind(429), True), (ValueError("not in the instruction set"), True),
        (behind(500), False), (behind(408), False), (behind(-1), False), (ConnectionError("gone"), False),
        (json.JSONDecodeError("no answer", "", 0), False),
    ]:  # fmt: skip
        monkeypatch.setattr(services, "runtime", lambda error=error: Runtime(error))
        with pytest.raises(Refused if refused else type(error)) as caught:
            IbmService(None, "chip").send(order())
        assert isinstance(caught.value, Refused) == refused


def test_ends_of_a_job_are_told_apart(monkeypatch):
    def raising(error):
        def raise_it(*words, **more):
            raise error

        return raise_it

    def job(state, error=None, **usage):
        result = raising(error) if error else lambda: "counts"
        return SimpleNamespace(result=result, status=lambda: state, metrics=lambda: {"usage": usage})

    account = SimpleNamespace()
    service = IbmService(account)
    assert service.wait("j", job("DONE")) == "counts"
    for status in ("ERROR", "CANCELLED"):
        with pytest.raises(JobFailed, match=f"{status.lower()}, bad") as caught:
            service.wait("j", job(status, RuntimeError("bad")))
        assert caught.value.again
    over = type("RuntimeJobMaxTimeoutError", (Exception,), {})
    with pytest.raises(JobFailed) as caught:
        service.wait("j", job("ERROR", over("too long")))
    assert not caught.value.again
    with pytest.raises(ConnectionError):
        service.wait("j", job("RUNNING", ConnectionError("gone")))
    account.job = raising(type("RuntimeJobNotFound", (Exception,), {})("no such job"))
    with pytest.raises(UnknownJob):
        service.wait("j", None)
    with pytest.raises(KeyError):  # a decoder's: the job is there
        service.wait("j", job("DONE", KeyError("data")))
    assert service.usage("j", job("DONE", quantum_seconds=3)) == 3.0
    assert service.usage("j", job("DONE", status="pending", qpu_charge_time_seconds=1)) is None
    assert service.usage("j", job("DONE", status="final", qpu_charge_time_seconds=4)) == 4.0
    assert service.usage("j", job("DONE")) is None


def test_a_job_that_was_just_made_gets_time_to_appear(monkeypatch):
    slept = []
    monkeypatch.setattr(services.time, "sleep", slept.append)
    lists = [[], [SimpleNamespace(job_id=lambda: "late")]]
    service = IbmService(SimpleNamespace(jobs=lambda job_tags, limit: lists.pop(0)))
    assert service.find("tag", age=10) == "late" and slept == [20]
    lists = [[]]
    assert service.find("tag", age=31) is None and slept == [20]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["device.options.colour=red"], r"device.options.colour=red: possible words: dynamical_decoupling"),
        (["device.options.dynamical_decoupling=YY"], "use XX, XpXm, XY4 or null"),
        (["device.options.gate_twirling=1"], "use true or false"),
        (["device.options.rep_delay_us=0"], "microseconds above 0"),
        (["device.repetition=-1"], "device.repetition=-1"),
        (["device.mode=crowd"], "session"),
        (["device=fake", "device.mode=batch"], "only device=ibm has it"),
        (["device=fake", "device.options.gate_twirling=true"], "fake has none"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, said):
    with pytest.raises(InputError, match=said):
        compose("perplexity", ["device=ibm", *words] if words[0] != "device=fake" else words)


def test_options_may_be_given_one_by_one():
    words = ["device=ibm", "device.mode=session", "device.options.rep_delay_us=50", "device.options.gate_twirling=true"]
    config = compose("perplexity", words).device
    assert config.options == {"rep_delay_us": 50, "gate_twirling": True} and config.mode is Mode.session


def test_more_shots_than_a_job_takes_are_refused(tmp_path):
    with pytest.raises(InputError, match="10,000,000 executions at most"):
        open_processor(Setting(DeviceConfig("fake", 20_000_000), Noise(), tmp_path))


def test_missing_and_refused_accounts_say_what_to_do_and_never_show_the_token(monkeypatch):
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    with pytest.raises(InputError, match=r"no account; set QISKIT_IBM_TOKEN"):
        ibm_account()
    import qiskit_ibm_runtime

    def refuse(**words):
        raise PermissionError(f"invalid token {words['token']}")

    monkeypatch.setenv("QISKIT_IBM_TOKEN", "secret-token")
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", refuse)
    with pytest.raises(InputError, match="it may have expired") as caught:
        ibm_account()
    assert "secret" not in str(caught.value)


def test_a_missing_client_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "qiskit_ibm_runtime", None)
    with pytest.raises(InputError, match=r"pip install 'qrun-adapters\[ibm\]'"):
        fake_backend("FakeTorino")


def test_an_unknown_recorded_backend_is_named():
    with pytest.raises(InputError, match=r"recorded backends are FakeTorino, FakeMarrakesh, FakeFez"):
        fake_backend("FakeNowhere")
