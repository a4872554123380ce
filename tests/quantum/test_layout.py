import itertools

import pytest

from qrun.errors import InputError
from qrun.quantum.hardware import fake_backend
from qrun.quantum.layout import Chip, heavy_hex, pack, read_chip
from qrun.quantum.noise import Noise
from qrun.quantum.plan import block_cost, plan
from qrun.quantum.presets import average_infidelity, medians


@pytest.fixture(scope="module")
def marrakesh():
    return fake_backend("FakeMarrakesh")


def test_the_nominal_lattice_is_the_156_qubit_heron(marrakesh):
    lattice = heavy_hex()
    assert set(lattice.couplers) == {(min(e), max(e)) for e in marrakesh.target["cz"]} and lattice.qubits == 156


@pytest.mark.parametrize(("size", "most"), [(1, 156), (2, 64), (3, 52)])
def test_packings_are_disjoint_coupled_and_of_the_known_size(size, most):
    chip = heavy_hex()
    places = pack(chip, size)
    used = [q for place in places for q in place]
    assert len(places) == most and len(set(used)) == len(used)
    assert all((min(a, b), max(a, b)) in chip.couplers for place in places for a, b in itertools.pairwise(place))


def test_among_packings_of_equal_size_the_one_with_less_error_wins():
    square = Chip("square", 4, {(0, 1): 0.2, (1, 2): 0.01, (2, 3): 0.2, (0, 3): 0.01}, [0.0] * 4)
    assert pack(square, 2) == [(0, 3), (1, 2)]
    line = Chip("line", 4, {(0, 1): 0.01, (1, 2): 0.3, (2, 3): 0.01}, [0.0, 0.0, 0.0, 0.4])
    assert pack(line, 3) == [(0, 1, 2)]


def test_dead_couplers_are_left_out_and_named(marrakesh):
    chip = read_chip(marrakesh)
    assert len(chip.dead) == 13 and (23, 24) in chip.dead and chip.date == "2025-02-26"
    assert not {tuple(sorted(p)) for p in pack(chip, 2)} & set(chip.dead)


def test_a_block_larger_than_the_chip_is_refused():
    with pytest.raises(InputError, match="needs 5 qubits, small has 3"):
        pack(Chip("small", 3, {(0, 1): 0.0}, [0.0] * 3), 5)


def test_the_papers_sequence_from_first_principles():
    found = plan(heavy_hex(), 4, [1024], tokens=83, shots=8192, circuit_seconds=3e-6)
    assert (found.blocks_per_circuit, found.circuits_per_token, found.circuits) == (64, 16, 1328)
    assert found.executions == 10_878_976 and found.jobs == 2
    assert found.quick_seconds / 60 == pytest.approx(63.5, abs=0.1)
    assert found.one_circuit_per_job_minutes == pytest.approx(265.6)  # the paper reports 4 h 24 min = 264 min


def test_sites_follow_one_another_and_round_up_alone():
    found = plan(heavy_hex(), 4, [144, 65, 64], tokens=10, shots=1000, circuit_seconds=0)
    assert found.circuits_per_token == 3 + 2 + 1 and found.jobs == 3


def test_a_two_qubit_block_circuit_costs_three_cz_on_the_chip():
    cost = block_cost(2, heavy_hex(), 2.45e-4)
    assert cost.counts["cz"] == 3 and 12 <= cost.counts["sx"] + cost.counts["x"] <= 14 and 15 <= cost.depth <= 20
    assert cost.gate_survival == pytest.approx(
        (1 - 1.78e-3) ** 3 * (1 - 2.45e-4) ** (cost.counts["sx"] + cost.counts["x"]), rel=1e-6
    )
    assert 30 <= block_cost(3, heavy_hex(), 2.45e-4).counts["cz"] <= 40


def test_presets_are_medians_and_make_gates_of_the_reported_error(marrakesh):
    values = medians(marrakesh)
    noise = Noise(**values)
    assert values["date"] == "2025-02-26" and 1e-3 < noise.cz < 3.3e-3
    # depolarising and thermal infidelities add up to the reported medians, to first order
    assert noise.cz + average_infidelity(68, noise.t1_us, noise.t2_us, 2) == pytest.approx(3.2e-3, rel=0.1)
    assert noise.read_0_given_1 == pytest.approx(1.34e-2, rel=0.01)


def test_thermal_infidelity_is_that_of_the_channel():
    from qiskit.quantum_info import average_gate_fidelity
    from qiskit_aer.noise import thermal_relaxation_error

    error = thermal_relaxation_error(100e3, 80e3, 500)
    assert average_infidelity(500, 100, 80, 1) == pytest.approx(1 - average_gate_fidelity(error), rel=1e-6)
    assert average_infidelity(500, 100, 80, 2) == pytest.approx(
        1 - average_gate_fidelity(error.tensor(error)), rel=1e-6
    )
