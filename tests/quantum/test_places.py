"""Noise of the real circuit at its real place: calibrations, waits, and the simulator beside a dense density matrix."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from quantum_support import FULL, density_matrix, rotations, unit_slices

from qrun.config.compose import compose
from qrun.errors import InputError
from qrun.quantum.cache import BlockCache
from qrun.quantum.calibration import FAKES, Calibration, Coupler, Qubit, calibration, fake_backend, read_calibration
from qrun.quantum.devices.aer import AerDevice
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.devices.pennylane import PennyLaneDevice
from qrun.quantum.gates import CZ
from qrun.quantum.layout import coupling, pack
from qrun.quantum.noise import Noise
from qrun.quantum.places import everywhere
from qrun.quantum.preparation import preparation
from qrun.quantum.simulator import prepare, probabilities
from qrun.quantum.synthesis import shapes
from qrun.quantum.wiring import Wiring

MARRAKESH = Noise(name="FakeMarrakesh", calibration="FakeMarrakesh")


@pytest.mark.parametrize("noise", [FULL, dataclasses.replace(FULL, dephasing=0.01), MARRAKESH])
@pytest.mark.parametrize(("n", "synthesis", "coupling"), [(1, "line", "line"), (2, "line", "line"), (3, "line", "line"),
                                                          pytest.param(3, "qiskit", "line", marks=pytest.mark.slow),
                                                          (2, "qiskit", "full")])  # fmt: skip
def test_the_simulator_is_an_independent_density_matrix(n, synthesis, coupling, noise):
    if noise is MARRAKESH and coupling == "full":
        pytest.skip("no chip couples every pair")
    wiring = Wiring(noise, synthesis, coupling)
    blocks, units = rotations(n, 3, seed=n), unit_slices(n, 3, 3, seed=n)
    units[1] = np.eye(2**n)[-1]  # a basis state: zeros and signs in the tree
    units[2] = -np.eye(2**n)[0]
    circuits, prepared, places = wiring.circuits(blocks), wiring.preparations(n), wiring.places(n)
    found = probabilities(units, prepare(prepared, circuits, places, np.float64))
    dense = [
        [density_matrix(circuits, j, units[i, j], prepared[circuits.shape[j]], places) for j in range(3)]
        for i in range(3)
    ]
    np.testing.assert_allclose(found, dense, atol=1e-12)
    single = probabilities(units, prepare(prepared, circuits, places, np.float32))
    np.testing.assert_allclose(single, dense, atol=2e-6)


@pytest.mark.slow
def test_blocks_of_four_qubits_run_on_paths_and_on_stars(tmp_path):
    """More places than paths alone, and each block's circuit keeps to the couplers of its own place."""
    wiring, chip = Wiring(MARRAKESH, keep=1.0), calibration("FakeMarrakesh")
    chosen = wiring.chosen(4)
    shape = [coupling(chip, place, shapes(4)) for place in chosen]
    assert len(chosen) > len(pack(chip, 4)) and len({q for place in chosen for q in place}) == 4 * len(chosen)
    first = sorted([shape.index(0), shape.index(1)])
    blocks, units = np.repeat(rotations(4, 1), first[1] + 1, 0), np.repeat(unit_slices(4, 2, 1), first[1] + 1, 1)
    circuits, places = wiring.circuits(blocks), wiring.places(4)
    assert circuits.shape.tolist() == shape[: first[1] + 1]
    found = probabilities(units, prepare(wiring.preparations(4), circuits, places, np.float64))
    torch_form = NoisyDevice(wiring, None, np.float64, BlockCache(tmp_path), "cpu")
    again = run(torch_form, blocks, units)
    np.testing.assert_allclose(again, found, atol=1e-12)
    for j in first:
        edges = shapes(4)[shape[j]]
        pairs = circuits.take([j])
        used = {tuple(sorted(p)) for p in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True) if p[1] >= 0}
        assert used == set(edges)
        dense = density_matrix(circuits, j, units[0, j], wiring.preparations(4)[shape[j]], places)
        np.testing.assert_allclose(found[0, j], dense, atol=1e-12)


def run(device, blocks, units):
    mask = np.ones(units.shape[:2], bool)
    return device.run(device.prepare(blocks), units, mask, 0, np.arange(len(units)))


@pytest.mark.slow
@pytest.mark.parametrize("device", [AerDevice, PennyLaneDevice])
def test_references_agree_on_a_calibrated_chip(device):
    wiring, blocks, units = Wiring(MARRAKESH), rotations(2, 3), unit_slices(2, 2, 3)
    noisy, reference = NoisyDevice(wiring, None, np.float64), device(wiring, None)
    found, expected = run(noisy, blocks, units), run(reference, blocks, units)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert not np.allclose(found, (np.einsum("jab,njb->nja", blocks, units)) ** 2, atol=1e-3)


def test_a_qubit_waits_for_its_partner_and_nothing_waits_before_its_first_gate():
    wiring = Wiring(Noise(t1_us=100.0, sx_ns=30, cz_ns=70))
    circuits = wiring.circuits(rotations(3, 1))
    waits, last = everywhere(wiring.noise, 3).waits(circuits)
    assert (last == 0).all()  # an RY on every qubit ends with the reading
    begins, waited = np.zeros(3), np.zeros(3)  # of each qubit's next gate, back from the reading, and its wait
    for g in reversed(range(len(circuits.kind))):
        on = [q for q in (circuits.first[g], circuits.second[g]) if q >= 0]
        ends = [begins[q] + waited[q] for q in on]
        assert ends == pytest.approx([min(ends)] * len(on))  # a CZ ends for both of its qubits at once
        for q, wait in zip(on, waits[g], strict=False):
            begins[q], waited[q] = ends[0] + (70 if circuits.kind[g] == CZ else 60), wait
    assert waits.sum() > 0 and (waits >= 0).all()
    assert (waited == 0).all()


@pytest.mark.slow
def test_rates_of_a_place_are_those_that_qiskit_gives_its_gates():
    from qiskit.quantum_info import average_gate_fidelity
    from qiskit_aer.noise import NoiseModel

    backend, chip = fake_backend("FakeMarrakesh"), calibration("FakeMarrakesh")
    theirs = NoiseModel.from_backend(backend)
    base = Noise(calibration="FakeMarrakesh")
    for qubit in (0, 5, 77):
        ours = Wiring(base).calibration.noise(base, qubit)
        error = 1 - average_gate_fidelity(theirs._local_quantum_errors["sx"][(qubit,)])
        mine = 1 - _fidelity([ours], 1)
        assert mine == pytest.approx(error, rel=1e-6)
    for edge in list(chip.couplers)[:3]:
        error = 1 - average_gate_fidelity(theirs._local_quantum_errors["cz"][edge])
        assert 1 - _fidelity(chip.pair(base, edge), 2) == pytest.approx(error, rel=1e-6)


def _fidelity(noises, qubits):
    """Average fidelity of depolarising and relaxation, from their Pauli rates."""
    d, own = 2**qubits, np.ones(1)
    for noise in noises:
        rates = noise.rates(qubits)
        own = np.outer(own, [1, rates.transverse, rates.transverse, rates.longitudinal]).ravel()
    own[1:] *= noises[0].rates(qubits).keep
    return (own.sum() / d + 1) / (d + 1)


def test_an_error_that_is_turned_off_is_off_at_every_qubit_also_where_its_median_is_zero():
    relaxing = Qubit(1e-4, 36, 30.0, 30.0, 0.01, 0.02)  # whose relaxation explains more than its gate's error
    without = Qubit(2e-3, 36, None, None, 0.03, 0.0)
    chip = Calibration("x", "", 3, {0: relaxing, 1: relaxing, 2: without}, {(1, 2): Coupler(1e-2, 70)}, {})
    base = chip.typical
    assert base.sx == 0 and chip.noise(base, 2).sx == pytest.approx(2e-3) and chip.noise(base, 0).t1_us == 30
    for twice in (dataclasses.replace(base, factor=2.0), base.along("gates", 2 * base.cz)):
        assert chip.noise(twice, 2).sx == pytest.approx(4e-3)
    for group in ("two_qubit", "readout"):
        found = chip.noise(base.only(group), 2)
        assert (found.sx, found.read_1_given_0) == (0, 0.03 if group == "readout" else 0)
    never = replace_readouts(chip, 0.0, 0.02)
    assert never.medians["read_1_given_0"] == 0 and never.noise(never.typical, 2).read_1_given_0 == 0.03
    assert never.noise(never.typical.only("two_qubit"), 2).read_1_given_0 == 0


def replace_readouts(chip, up, down):
    """The chip with these readout errors of qubits 0 and 1."""
    others = {q: dataclasses.replace(chip.qubits[q], read_1_given_0=up, read_0_given_1=down) for q in (0, 1)}
    return dataclasses.replace(chip, qubits={**chip.qubits, **others})


@pytest.mark.parametrize("name", FAKES)
@pytest.mark.parametrize("factor", [0.177, 0.3, 1.5])
def test_scaled_times_stay_physical_where_t2_is_twice_t1(name, factor):
    chip, base = calibration(name), Noise(calibration=name, factor=factor)
    clipped = [q for q, qubit in chip.qubits.items() if qubit.t1_us and (qubit.t2_us or 0) >= 2 * qubit.t1_us]
    assert clipped and all((noise := chip.noise(base, q)).t2_us <= 2 * noise.t1_us for q in clipped)


def test_on_a_chip_that_couples_every_pair_every_cz_has_the_noise_of_its_coupler():
    chip = Calibration(
        "all", "", 3, {q: Qubit(1e-3, 30, 90.0, 80.0, 0.01, 0.02) for q in range(3)},
        {pair: Coupler(error, 70) for pair, error in {(0, 1): 0.01, (0, 2): 0.05, (1, 2): 0.02}.items()}, {},
    )  # fmt: skip
    wiring, blocks, units = Wiring(chip.typical, coupling="full", chip=chip), rotations(3, 1), unit_slices(3, 2, 1)
    circuits, prepared, places = wiring.circuits(blocks), wiring.preparations(3), wiring.places(3)
    pairs = {tuple(sorted(pair)) for pair in zip(circuits.first.tolist(), circuits.second.tolist(), strict=True)}
    assert {(0, 1), (0, 2), (1, 2)} <= pairs and (places.tables[1][0, [0, 0, 1], [1, 2, 2], 3] < 1).all()
    found = probabilities(units, prepare(prepared, circuits, places, np.float64))
    np.testing.assert_allclose(found[0, 0], density_matrix(circuits, 0, units[0, 0], prepared[0], places), atol=1e-12)


def test_a_calibration_file_that_changed_is_read_again(tmp_path):
    file, chip = tmp_path / "chip.json", calibration("FakeTorino")
    file.write_text(chip.to_json())
    assert calibration(str(file)) is calibration(str(file)) == chip
    file.write_text(dataclasses.replace(chip, name="another").to_json())
    assert calibration(str(file)).name == "another"


def test_circuits_on_disk_are_those_of_one_routing(monkeypatch):
    """Beyond four qubits Qiskit routes the preparation, and another version of it another way."""
    wiring = Wiring(Noise())
    before = [wiring.mixture(dim) for dim in (4, 8)]

    def otherwise(n, edges):
        return dataclasses.replace(preparation(n, edges), wires=tuple(range(n, 0, -1)))

    monkeypatch.setattr("qrun.quantum.wiring.preparation", otherwise)
    assert all(a != wiring.mixture(dim) for a, dim in zip(before, (4, 8), strict=True))


def test_what_does_not_work_is_left_out_and_named():
    chip = calibration("FakeMarrakesh")
    assert chip.left_out["113"].startswith("error 0.9") and chip.left_out["23-24"] == "error 1"
    assert 113 not in chip.qubits and (23, 24) not in chip.couplers
    used = {q for place in Wiring(MARRAKESH).chosen(2) for q in place}
    assert 113 not in used


@pytest.fixture
def torino():
    """FakeTorino with a target of its own to break."""
    whole = fake_backend("FakeTorino")
    names = ["sx", "cz", "measure"]
    target = type("Target", (dict,), {"operation_names": names})({name: dict(whole.target[name]) for name in names})
    return SimpleNamespace(name="half", num_qubits=133, target=target, properties=whole.properties)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["measure", "sx"])
def test_a_qubit_that_cannot_be_read_or_turned_is_out_with_its_couplers(broken, torino):
    del torino.target[broken][(7,)]
    torino.target["cz"][(0, 1)] = None
    chip = read_calibration(torino)
    assert chip.left_out["7"] == "not operational" and chip.left_out["0-1"] == "no error reported"
    assert chip.left_out["6-7"] == "one of its qubits is out" and 7 not in chip.qubits


@pytest.mark.slow
def test_a_chip_on_which_no_coupler_works_is_refused(torino):
    torino.target["cz"] = dict.fromkeys(torino.target["cz"])
    with pytest.raises(InputError, match=r"^device.backend=half: no two of its qubits are joined"):
        read_calibration(torino)


def test_a_calibration_comes_back_from_its_file(tmp_path):
    chip = calibration("FakeFez")
    (tmp_path / "chip.json").write_text(chip.to_json())
    again = calibration(str(tmp_path / "chip.json"))
    assert again == chip and again.digest == chip.digest
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "deep.json").write_text("[" * 10**5)
    whys = {"broken.json": "not a calibration", "none.json": "no such file", "deep.json": "not readable as JSON",
            "a" * 300: "no such file"}  # fmt: skip
    for name, why in whys.items():
        with pytest.raises(InputError, match=why):
            calibration(str(tmp_path / name))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f["qubits"]["3"].update(sx="0.1"), "qubits.3.sx='0.1'"),
        (lambda f: f["qubits"]["3"].update(sx=True), "qubits.3.sx=True"),
        (lambda f: f["qubits"]["3"].update(sx=0.5), "qubits.3.sx=0.5 should be less than 0.5"),
        (lambda f: f["qubits"]["3"].update(t1_us=-1), "qubits.3.t1_us"),
        (lambda f: f["qubits"]["3"].pop("read_1_given_0"), "no qubits.3.read_1_given_0 there"),
        (lambda f: f["couplers"]["0-1"].update(cz_ns=float("inf")), "couplers.0-1.cz_ns=inf"),
        (lambda f: f["couplers"].update({"0-131": f["couplers"]["0-1"], "x": {}}), "couplers.x"),
        (lambda f: f["couplers"].update({"0-999": f["couplers"]["0-1"]}), "couplers.0-999 joins no two of its qubits"),
        (lambda f: f["couplers"].update({"1-0": f["couplers"]["0-1"]}), "couplers.1-0 joins no two"),
        (lambda f: f.update(couplers={}), "couplers={}"), (lambda f: f.update(couplers=[]), "couplers=[]"),
        (lambda f: f.update(size=2), "but size=2"),
        (lambda f: f.update(size=2.5), "size=2.5"), (lambda f: f.pop("date"), "no date there"),
    ],
)  # fmt: skip
def test_every_value_of_a_calibration_has_its_type_and_range(change, said):
    facts = json.loads(calibration("FakeTorino").to_json())
    change(facts)
    with pytest.raises(InputError, match=r"^chip.json: ") as stop:
        Calibration.from_dict(facts, "chip.json")
    assert said in str(stop.value)


@pytest.mark.parametrize("name", FAKES)
def test_a_preset_of_a_chip_takes_its_medians_and_moves_all_places_alike(name):
    noise = compose("circuit", [f"noise={name}"]).noise
    chip = calibration(name)
    assert {key: getattr(noise, key) for key in chip.medians} == pytest.approx(chip.medians)
    edge = next(iter(chip.couplers))
    before = chip.pair(noise, edge)[0]
    moved = chip.pair(noise.along("two_qubit", 2 * noise.cz), edge)[0]
    assert moved.cz == pytest.approx(2 * before.cz) and moved.cz_ns == pytest.approx(2 * before.cz_ns)
    assert moved.sx == before.sx and moved.read_1_given_0 == before.read_1_given_0
    quiet = chip.noise(noise.only("readout"), edge[0])
    assert quiet.gates_ideal and quiet.read_1_given_0 == before.read_1_given_0
    with pytest.raises(InputError, match=r"of fake_\w+: noise.read_\w+=.*give a rate from 0 to 0.5"):
        Wiring(dataclasses.replace(noise, factor=8.0), keep=1.0).places(2)  # the medians may, the worst place may not


def test_blocks_take_the_places_in_turn_best_first():
    wiring = Wiring(MARRAKESH, keep=0.8)
    places, chosen = wiring.places(2), wiring.chosen(2)
    assert len(places) == len(chosen) == 51 and places.of(0) == places.of(51) == 0
    blocks = np.repeat(rotations(2, 1), 60, 0)
    units = np.repeat(unit_slices(2, 200, 1), 60, 1)
    device = NoisyDevice(wiring, None, np.float64)
    found = run(device, blocks, units)
    np.testing.assert_array_equal(found[:, 51:], found[:, :9])
    error = np.square(np.sqrt(found) - np.abs(np.einsum("jab,njb->nja", blocks, units))).sum(-1).mean(0)
    assert error[:10].mean() < 0.5 * error[41:51].mean()


def test_the_worst_fifth_of_the_places_carries_most_of_the_error():
    """Mean squared slice error at b = 4 on FakeMarrakesh: about half of all places', with 1.24 times the circuits."""
    blocks, units = np.repeat(rotations(2, 1), 64, 0), np.repeat(unit_slices(2, 200, 1), 64, 1)
    rms, counts = [], []
    for keep in (1.0, 0.8):
        device = NoisyDevice(Wiring(MARRAKESH, keep=keep), None, np.float64)
        count = len(device.places(2))
        found = run(device, blocks[:count], units[:, :count])
        ideal = np.abs(np.einsum("jab,njb->nja", blocks[:count], units[:, :count]))
        rms.append(np.sqrt(np.square(np.sqrt(found) - ideal).sum(-1).mean()))
        counts.append(count)
    assert rms[1] ** 2 < 0.55 * rms[0] ** 2 and counts == [63, 51]
