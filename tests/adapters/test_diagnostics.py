"""The operator-Schmidt numbers of matrices for which they are known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

from qrun.adapters.cayley import cayley
from qrun.adapters.diagnostics import angles, describe, entropy, on_text, schmidt
from qrun.adapters.linear import attach
from qrun.adapters.sites import sites
from qrun.adapters.spectra import HAAR, haar_blocks, spectra, trained_blocks
from qrun.config.schema import AdapterConfig


def test_products_have_bond_one_and_the_swap_has_the_most():
    product = np.kron(special_ortho_group.rvs(2, random_state=0), special_ortho_group.rvs(2, random_state=1))
    swap = np.eye(4)[[0, 2, 1, 3]]
    cnot = np.eye(4)[[0, 1, 3, 2]]
    p = schmidt(torch.from_numpy(np.stack([product, swap, cnot, np.eye(4)])))
    torch.testing.assert_close(p.sum(1), torch.ones(4, dtype=p.dtype))
    np.testing.assert_allclose(entropy(p).numpy(), [0, 2, 1, 0], atol=1e-9)


@pytest.mark.parametrize(("dim", "most"), [(4, 2), (8, 2), (16, 4)])
def test_entropy_is_at_most_that_of_the_smaller_half(dim, most):
    blocks = torch.from_numpy(special_ortho_group.rvs(dim, size=20, random_state=3))
    assert (entropy(schmidt(blocks)) <= most + 1e-9).all()


def test_angles_are_those_of_the_rotation():
    parameters = torch.tensor([[0.4]])
    q = cayley(parameters, 2)[0]
    assert float(angles(parameters, 2)[0, 0]) == pytest.approx(math.acos(float(q[0, 0])), abs=1e-6)
    parameters = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    eigen = np.sort(np.abs(np.angle(np.linalg.eigvals(cayley(parameters.double(), 4).numpy()))), axis=1)
    np.testing.assert_allclose(np.sort(angles(parameters, 4).numpy(), axis=1), eigen[:, ::2], atol=1e-6)


def test_an_identity_adapter_moves_nothing_and_a_trained_one_is_described(tiny):
    adapter = attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4))
    found = describe(adapter) | on_text(tiny.model, adapter, torch.arange(40).view(2, 20))
    assert found["rotation_degrees"] == found["sign_flips"] == found["relative_change"] == 0 and found[
        "effective_bond"
    ] == pytest.approx(1)
    assert 2 < found["haar_effective_bond"] < 4
    with torch.no_grad():
        for parameter in adapter.tensors().values():
            parameter.normal_(0, 0.5)
    found = describe(adapter) | on_text(tiny.model, adapter, torch.arange(40).view(2, 20))
    assert 0 < found["sign_flips"] < 0.5 and 0.1 < found["relative_change"] < 2 and 0 < found["entropy_ratio"] < 1


def test_the_spectra_of_known_blocks():
    turn = np.array([[math.cos(0.2), -math.sin(0.2)], [math.sin(0.2), math.cos(0.2)]])
    swap = np.eye(4)[[0, 2, 1, 3]]
    degrees, values = spectra(torch.from_numpy(np.stack([np.kron(turn, np.eye(2)), swap])))
    np.testing.assert_allclose(degrees[:2], np.rad2deg([0.2, 0.2]), atol=1e-6)
    np.testing.assert_allclose(values, [[1, 0, 0, 0], [0.25] * 4], atol=1e-9)
    degrees, values = spectra(torch.from_numpy(np.stack([np.pad(turn, (0, 1)) + np.diag([0, 0, 1])])))
    assert degrees == pytest.approx(np.rad2deg([0.2])) and values is None  # an odd b has an axis that stays


def test_spectra_of_an_adapter_are_those_that_its_means_describe(tiny):
    adapter = attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4))
    with torch.no_grad():
        for parameter in adapter.tensors().values():
            parameter.normal_(0, 0.5)
    blocks, found = trained_blocks(adapter), describe(adapter)
    degrees, values = spectra(blocks)
    assert len(degrees) == 2 * len(blocks) and values.shape == (len(blocks), 4)
    assert degrees.mean() == pytest.approx(found["rotation_degrees"]) and degrees.max() == pytest.approx(
        found["rotation_degrees_largest"]
    )
    assert values[:, 1].mean() == pytest.approx(found["second_schmidt"])


def test_the_reference_turns_as_haar_random_planes_do():
    """One plane turns by any angle alike, Schmidt values share out evenly on average."""
    degrees, _ = spectra(haar_blocks(2))
    assert len(degrees) == HAAR and degrees.mean() == pytest.approx(90, abs=4 * 52 / math.sqrt(HAAR))
    _, values = spectra(haar_blocks(8))
    np.testing.assert_allclose(values.sum(1), 1)
    assert (entropy(torch.from_numpy(values)) > 1).all()
