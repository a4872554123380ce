import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
from quantum_support import rotations, unit_slices
from threadpoolctl import threadpool_limits

from qrun.adapters.cayley import cayley
from qrun.errors import InputError
from qrun.quantum.circuits import block_circuits, on_wires, to_qiskit
from qrun.quantum.encoding import normalise, qubits
from qrun.quantum.estimates import magnitudes, with_signs
from qrun.quantum.noise import Noise
from qrun.quantum.preparation import preparation
from qrun.quantum.synthesis import STAR, ansatz, path, synthesise_angles, unitary
from qrun.quantum.wiring import Wiring


def far_apart(n):
    """Slices whose entries spread over 40 decades, with zeros of both signs."""
    sizes = st.floats(-40, 0).map(lambda e: 10.0**e)
    entry = st.one_of(st.sampled_from([0.0, -0.0]), sizes, sizes.map(lambda x: -x))
    return arrays(np.float64, 2**n, elements=entry).filter(lambda v: np.abs(v).max() > 1e-9)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 4), data=st.data())
def test_preparation_prepares_any_real_vector_with_its_signs(n, data):
    unit = normalise(data.draw(far_apart(n))[None])[0][0]
    prepared = preparation(n, path(n))
    np.testing.assert_allclose(abs(state(prepared, unit) @ unit), 1, atol=1e-12)


def state(prepared, unit):
    """Amplitudes by index of the slice, by gates on a dense vector."""
    circuit = QuantumCircuit(prepared.qubits)
    angles = prepared.angles(unit)
    for first, second, parameter, angle in prepared.steps:
        if second >= 0:
            circuit.cz(first, second)
        else:
            circuit.ry(angle + (angles[parameter] if parameter >= 0 else 0), first)
    return Statevector(circuit).data.real[on_wires(prepared.qubits, prepared.wires)]


@pytest.mark.parametrize(("n", "most"), [(1, 0), (2, 1), (3, 3), (4, 14)])
def test_preparations_keep_to_the_path_and_need_few_cz(n, most):
    prepared = preparation(n, path(n))
    used = {(min(a, b), max(a, b)) for a, b, _, _ in prepared.steps if b >= 0}
    assert prepared.czs == most and used <= set(path(n))
    assert sorted(k for _, _, k, _ in prepared.steps if k >= 0) == list(range(2**n - 1))


@pytest.mark.parametrize("coupling", ["line", "full"])
@pytest.mark.parametrize("n", [5, 6])
def test_larger_preparations_are_routed(n, coupling):
    wiring = Wiring(Noise(), coupling=coupling)
    prepared, unit = wiring.preparations(n)[0], unit_slices(n, 1, 1)[0, 0]
    used = {(min(a, b), max(a, b)) for a, b, _, _ in prepared.steps if b >= 0}
    assert used <= set(wiring.edges(n))
    np.testing.assert_allclose(abs(state(prepared, unit) @ unit), 1, atol=1e-12)


CASES = [(1, "line", "line"), (2, "line", "line"), (3, "line", "line"), (4, "line", "line"), (2, "qiskit", "line"),
         (3, "qiskit", "line"), (3, "qiskit", "full"), (4, "qiskit", "line"), (5, "line", "line")]  # fmt: skip


@pytest.mark.parametrize(("n", "synthesis", "coupling"), CASES)
def test_a_block_circuit_measures_the_squares_of_the_rotated_slice_on_its_couplings(n, synthesis, coupling):
    wiring = Wiring(Noise(), synthesis, coupling)
    blocks, units = rotations(n, 2, seed=n), unit_slices(n, 2, 2)
    circuits = wiring.circuits(blocks)
    for j in range(2):
        circuit = to_qiskit(circuits, j, wiring.preparations(n)[0].angles(units[0, j]), measure=False)
        p = Statevector(circuit).probabilities()[circuits.outcomes(j)]
        np.testing.assert_allclose(p, (blocks[j] @ units[0, j]) ** 2, atol=1e-9)
        pairs = {tuple(sorted(circuit.find_bit(q).index for q in item.qubits)) for item in circuit.data
                 if item.operation.name == "cz"}  # fmt: skip
        assert pairs <= set(wiring.edges(n))


def test_gate_counts_of_random_blocks():
    """On a line: 2 CZ and one of the preparation for two qubits (the paper's circuit), 14 + 3, 60 + 14."""
    counts = {n: Wiring(Noise()).counts(2**n)["cz"] for n in (1, 2, 3, 4)}
    assert counts == {1: 0, 2: 3, 3: 17, 4: 74}
    assert Wiring(Noise(), "qiskit", "full").counts(8)["cz"] <= 24 < 30 <= Wiring(Noise(), "qiskit").counts(8)["cz"]


def near_identity(n, count, size):
    skew = torch.randn(count, 2**n * (2**n - 1) // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return cayley(size * skew, 2**n).numpy()


@pytest.mark.parametrize(("n", "size"), [*((n, s) for n in (1, 2) for s in (0.0, 1e-12, 1e-5, 1.0)), (3, 0.0),
                                         (3, 1e-3), (3, 0.05), (3, 1.0)])  # fmt: skip
def test_line_circuits_are_exact_near_the_identity_and_far_from_it(n, size):
    blocks, shape = near_identity(n, 4, size), ansatz(n, path(n))
    angles, solved = synthesise_angles(blocks, shape)
    assert solved.all()
    found = unitary(angles, shape)
    signs = np.sign(np.einsum("bij,bij->b", found, blocks))[:, None, None]
    np.testing.assert_allclose(found, signs * blocks, atol=1e-9)


@pytest.mark.slow
def test_rotations_too_small_for_the_search_are_written_in_two_steps_and_exact():
    """RY and CZ are singular at the identity: the search does not reach rotations of 1e-6."""
    block, unit = near_identity(3, 1, 1e-6), unit_slices(3, 1, 1)[0, 0]
    circuits = Wiring(Noise()).circuits(block)
    circuit = to_qiskit(circuits, 0, preparation(3, path(3)).angles(unit), measure=False)
    p = Statevector(circuit).probabilities()[circuits.outcomes(0)]
    np.testing.assert_allclose(p, (block[0] @ unit) ** 2, atol=1e-9)
    assert circuits.counts()["cz"] == 2 * 14 + 3


def test_a_blocks_circuit_does_not_depend_on_the_blocks_beside_it():
    blocks, shape = rotations(3, 6), ansatz(3, path(3))
    alone = np.concatenate([synthesise_angles(block[None], shape)[0] for block in blocks])
    np.testing.assert_array_equal(synthesise_angles(blocks, shape)[0], alone)


def test_a_blocks_circuit_has_the_same_bits_on_any_number_of_threads():
    """Products of BLAS have not: at n = 4 they are large enough to be shared out."""
    blocks, shape, found = rotations(4, 2), ansatz(4, path(4)), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(synthesise_angles(blocks, shape)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-5, 1.0])
@pytest.mark.parametrize(("n", "czs"), [(1, 0), (2, 1 + 2 + 1), (3, 3 + 14 + 8)])
def test_blocks_of_determinant_minus_one_are_exact_and_cost_one_more_reflection(n, czs, size):
    """Signs too: Qiskit's own circuit of such a block drops rotations of 1e-5."""
    block, unit = near_identity(n, 1, size), unit_slices(n, 1, 1)[0, 0]
    block[0, 0] *= -1
    circuits = Wiring(Noise()).circuits(block)
    circuit = to_qiskit(circuits, 0, preparation(n, path(n)).angles(unit), measure=False)
    found, meant = Statevector(circuit).data[circuits.outcomes(0)], block[0] @ unit
    np.testing.assert_allclose(found * np.exp(-1j * np.angle(found[0] / meant[0])), meant, atol=1e-9)
    assert (n == 3 and 0 < size < 1e-3) or circuits.counts()["cz"] == czs  # or in two steps


def test_a_reflected_block_on_four_qubits_is_exact_on_a_path_and_on_a_star():
    block, unit = rotations(4, 1), unit_slices(4, 1, 1)[0, 0]
    block[0, 3] *= -1
    for edges, czs in ((path(4), 14 + 60 + 25), (STAR, 12 + 60 + 18)):
        circuits, prepared = block_circuits(block, edges), preparation(4, edges)
        circuit = to_qiskit(circuits, 0, prepared.angles(unit), measure=False)
        p = Statevector(circuit).probabilities()[circuits.outcomes(0)]
        np.testing.assert_allclose(p, (block[0] @ unit) ** 2, atol=1e-9)
        assert circuits.counts()["cz"] == czs


def test_some_blocks_taken_are_the_same_circuits():
    circuits = Wiring(Noise()).circuits(rotations(2, 5))
    some = circuits.take([3, 1])
    for new, old in ((0, 3), (1, 1)):
        assert to_qiskit(some, new, [0.1, 0.2, 0.3]) == to_qiskit(circuits, old, [0.1, 0.2, 0.3])


def test_slices_of_any_size_are_normalised_in_float32():
    slices = np.array([[3e19, -4e19], [3e-11, 4e-11], [0.0, 0.0]], np.float32)
    units, norms = normalise(slices)
    np.testing.assert_allclose(norms, [5e19, 5e-11, 0], rtol=1e-6)
    np.testing.assert_allclose(units[:2], [[0.6, -0.8], [0.6, 0.8]], rtol=1e-6)


def test_estimates_restore_norm_and_sign_and_zero_slices_stay_zero():
    slices = np.array([[[3.0, -4.0]], [[0.0, 0.0]], [[-0.0, 2.0]]])
    units, norms = normalise(slices)
    assert norms.tolist() == [[5.0], [0.0], [2.0]] and units[1, 0].tolist() == [1.0, 0.0]
    found = with_signs(magnitudes(units**2, None), slices) * norms[..., None]
    np.testing.assert_allclose(found, slices, atol=1e-12)


def test_what_is_not_finite_or_no_power_of_two_is_named():
    with pytest.raises(InputError, match="not finite"):
        normalise(np.array([[np.nan, 1.0]]))
    with pytest.raises(InputError, match=r"adapter.dim=6: .*nearest that do are 4 and 8"):
        qubits(6)
    with pytest.raises(InputError, match="not orthogonal"):
        Wiring(Noise()).circuits(np.eye(4)[None] * 1.01)
    assert [qubits(b) for b in (2, 4, 64)] == [1, 2, 6]
