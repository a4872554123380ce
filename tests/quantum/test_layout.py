import dataclasses
import itertools
import math

import numpy as np
import pytest
from quantum_support import chip

from qrun.config.compose import compose
from qrun.errors import InputError
from qrun.quantum.calibration import calibration
from qrun.quantum.layout import drawing, heavy_hex, pack
from qrun.quantum.noise import Noise
from qrun.quantum.plan import best_share, block_cost, plan
from qrun.quantum.services import fake_backend
from qrun.quantum.wiring import Wiring


def test_the_nominal_lattice_is_the_156_qubit_heron():
    lattice = heavy_hex()
    assert (
        set(lattice.couplers) == {(min(e), max(e)) for e in fake_backend("FakeMarrakesh").target["cz"]}
        and lattice.size == 156
    )


@pytest.mark.parametrize(("size", "most"), [(1, 156), (2, 64), (3, 52)])
def test_packings_are_disjoint_coupled_and_of_the_known_size(size, most):
    lattice = heavy_hex()
    places = pack(lattice, size)
    used = [q for place in places for q in place]
    assert len(places) == most and len(set(used)) == len(used)
    assert all((min(a, b), max(a, b)) in lattice.couplers for place in places for a, b in itertools.pairwise(place))


def test_among_packings_of_equal_size_the_one_with_less_error_wins():
    square = chip("square", {(0, 1): 0.2, (1, 2): 0.01, (2, 3): 0.2, (0, 3): 0.01}, [0.0] * 4)
    assert sorted(pack(square, 2)) == [(0, 3), (1, 2)]
    line = chip("line", {(0, 1): 0.01, (1, 2): 0.3, (2, 3): 0.01}, [0.0, 0.0, 0.0, 0.4])
    assert pack(line, 3) == [(0, 1, 2)]


def test_a_chip_without_errors_is_packed_too():
    assert len(pack(chip("clean", {(0, 1): 0.0, (1, 2): 0.0, (2, 3): 0.0}, [0.0] * 4), 2)) == 2


def test_what_a_place_loses_is_counted_gate_by_gate():
    clean = chip("line", {(0, 1): 0.0}, [0.0, 0.1])
    turned = {q: dataclasses.replace(qubit, sx=0.01) for q, qubit in clean.qubits.items()}
    wiring = Wiring(Noise(), chip=dataclasses.replace(clean, qubits=turned))
    counts = wiring.counts(4)
    expected = -(counts["sx"] + counts.get("x", 0)) * math.log1p(-0.02) - math.log1p(-0.1)
    assert wiring.losses(2, [(0, 1)]) == pytest.approx([expected], rel=1e-12)


def test_the_worst_places_are_dropped_first_and_the_best_come_first():
    line = chip("line", {(0, 1): 0.3, (2, 3): 0.01, (4, 5): 0.02}, [0.0] * 6)
    assert pack(line, 2) == [(2, 3), (4, 5), (0, 1)] and pack(line, 2, keep=0.6) == [(2, 3), (4, 5)]
    assert pack(line, 1, keep=0.01) == [(0,)]


def test_a_chip_is_drawn_in_its_rows():
    found = calibration("FakeMarrakesh")
    rows = drawing(found, pack(found, 2)).splitlines()
    assert len(rows) == 15 and [len(row) for row in rows[::2]] == [16] * 8
    assert sum(row.count("x") for row in rows) == 156 - len(found.qubits)
    assert sum(c.isdigit() for row in rows for c in row) == 2 * 63


def test_a_block_larger_than_the_chip_is_refused():
    with pytest.raises(InputError, match="needs 5 qubits, small has 3 that work"):
        pack(chip("small", {(0, 1): 0.0}, [0.0] * 3), 5)


def test_the_papers_sequence_from_first_principles():
    found = plan(64, [1024], tokens=83, shots=8192, circuit_seconds=3e-6)
    assert (found.blocks_per_circuit, found.circuits_per_token, found.circuits) == (64, 16, 1328)
    assert found.executions == 10_878_976 and found.jobs == 2
    assert found.quick_seconds / 60 == pytest.approx(63.5, abs=0.1)
    assert found.one_circuit_per_job_minutes == pytest.approx(265.6)  # the paper reports 4 h 24 min = 264 min


def test_sites_follow_one_another_and_round_up_alone():
    found = plan(64, [144, 65, 64], tokens=10, shots=1000, circuit_seconds=0)
    assert found.circuits_per_token == 3 + 2 + 1 and found.jobs == 3


def nominal(n, circuit="line"):
    lattice = heavy_hex()
    return block_cost(Wiring(lattice.typical, circuit, chip=lattice), n)


@pytest.mark.slow
def test_a_two_qubit_block_circuit_costs_three_cz_on_the_chip():
    cost = nominal(2)
    assert cost.counts["cz"] == 3 and cost.counts["sx"] == 16 and 15 <= cost.depth <= 25 and cost.places == 64
    assert cost.gate_survival == pytest.approx((1 - 4 / 3 * 1.78e-3) ** 3 * (1 - 2 * 2.45e-4) ** 16, rel=1e-6)
    assert cost.survival == pytest.approx(cost.gate_survival * 0.99**2, rel=1e-6)
    assert nominal(3).counts["cz"] == 17 and 30 <= nominal(3, "qiskit").counts["cz"] <= 40
    assert cost.errors[0] == pytest.approx(cost.errors[2])  # all places alike


def test_the_best_share_weighs_places_against_shots():
    assert best_share([0.01] * 8, 4, 8192) == (8, pytest.approx(0.01 + 3 / (4 * 8192)))
    assert best_share([0.0001, 0.5, 0.5, 0.5], 4, 8192)[0] == 1


@pytest.mark.parametrize("name", ["heron_r1", "heron_r2", "heron_r2_fez"])
def test_presets_are_the_medians_of_their_chips(name):
    preset = compose("circuit", [f"noise={name}"]).noise
    chip = {"heron_r1": "FakeTorino", "heron_r2": "FakeMarrakesh", "heron_r2_fez": "FakeFez"}[name]
    found = calibration(chip)
    assert preset.date == found.date[:10]
    assert {key: getattr(preset, key) for key in found.medians} == pytest.approx(found.medians, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "best", "last", "most"),
    [
        (2, [(13, 14), (5, 6), (94, 95)], (83, 84), 63),
        (3, [(12, 13, 14), (0, 1, 2), (6, 7, 8)], (119, 133, 132), 50),
        (4, [(12, 13, 14, 15), (4, 5, 6, 7), (0, 1, 2, 3)], (144, 145, 146, 147), 35),
    ],
)
def test_places_up_to_four_qubits_are_those_of_the_simulation(n, best, last, most):
    chip = calibration("FakeMarrakesh")
    found = Wiring(chip.typical, chip=chip).chosen(n)
    assert (found[:3], found[-1], len(found)) == (best, last, most)


def test_places_of_five_qubits_are_ranked_by_what_their_gates_and_readouts_lose():
    chip = calibration("FakeMarrakesh")
    wiring = Wiring(chip.typical, chip=chip)
    places = wiring.chosen(5)
    used = [q for place in places for q in place]
    losses, errors = wiring.losses(5, places), wiring.errors(5, places)
    assert len(places) >= 20 and len(used) == len(set(used)) and np.all(np.diff(losses) >= 0)
    least = -math.log1p(-4 / 3 * min(coupler.cz for coupler in chip.couplers.values()))
    assert least * wiring.counts(32)["cz"] < losses[0] < losses[-1]
    assert np.all(errors > 0.1) and np.all(errors < 0.6)  # |Q x| of noise alone: all entries alike
