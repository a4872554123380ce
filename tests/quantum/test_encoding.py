import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
from quantum_support import rotations, unit_slices

from qrun.errors import InputError
from qrun.quantum.circuits import append_preparation, block_circuit, synthesise
from qrun.quantum.encoding import estimate, normalise, preparation_angles, qubits


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 4), data=st.data())
def test_preparation_prepares_any_real_vector_with_its_signs(n, data):
    x = data.draw(
        arrays(np.float64, 2**n, elements=st.sampled_from([-2.0, -1.0, -1e-6, 0.0, 0.0, 0.5, 1.0, 3.0])).filter(
            lambda v: np.linalg.norm(v) > 1e-9
        )
    )
    unit = x / np.linalg.norm(x)
    circuit = QuantumCircuit(n)
    append_preparation(circuit, preparation_angles(unit), list(range(n)))
    overlap = np.vdot(Statevector(circuit).data, unit)
    assert abs(overlap) == pytest.approx(1, abs=1e-9)
    expected = {"cz": 2**n - n - 1, "sx": 2 * (2**n - 1), "rz": 2 * (2**n - 1)}
    assert {k: v for k, v in expected.items() if v} == dict(circuit.count_ops())


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_block_circuit_measures_the_squares_of_the_rotated_slice(n):
    q, x = rotations(n, 1)[0], unit_slices(n, 1, 1)[0, 0]
    state = Statevector(block_circuit(q, x, measure=False))
    np.testing.assert_allclose(state.probabilities(), (q @ x) ** 2, atol=1e-9)


def test_gate_counts_of_random_blocks():
    """Two qubits.

    2 CZ for Q, 3 with preparation (the paper's circuit). Larger ones stay below the Shannon decomposition, 23/48
    4^n - 3/2 2^n + 4/3.
    """
    counts = {n: synthesise(rotations(n, 1, seed=n)[0]).counts()["cz"] for n in (1, 2, 3, 4, 5)}
    print(f"CZ of Q alone {counts}, with preparation { {n: c + 2**n - n - 1 for n, c in counts.items()} }")
    assert counts[1] == 0 and counts[2] == 2
    assert counts[3] <= 20 and counts[4] <= 100 and counts[5] <= 444
    assert block_circuit(rotations(2, 1)[0]).count_ops()["cz"] == 3


def test_identity_blocks_need_no_entangling_gate():
    assert [synthesise(np.eye(2**n)).counts()["cz"] for n in (1, 2, 3)] == [0, 0, 0]


def test_estimates_restore_norm_and_sign_and_zero_slices_stay_zero():
    slices = np.array([[[3.0, -4.0]], [[0.0, 0.0]], [[-0.0, 2.0]]])
    units, norms = normalise(slices)
    assert norms.tolist() == [[5.0], [0.0], [2.0]] and units[1, 0].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(estimate(units**2, norms, slices), slices, atol=1e-12)


def test_what_is_not_finite_or_no_power_of_two_is_named():
    with pytest.raises(InputError, match="not finite"):
        normalise(np.array([[np.nan, 1.0]]))
    with pytest.raises(InputError, match=r"adapter.dim=6: .*nearest that do are 4 and 8"):
        qubits(6)
    with pytest.raises(InputError, match="not orthogonal"):
        synthesise(np.eye(4) * 1.01)
    assert [qubits(b) for b in (2, 4, 64)] == [1, 2, 6]
