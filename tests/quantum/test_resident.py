"""What a GPU does between two layers is what the processor does; in torch here, on whatever is at hand."""

import numpy as np
import pytest
import torch

from qrun.errors import InputError, RunFailed
from qrun.quantum import encoding, estimates, resident, sampling

PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def distributions(b, dtype, tokens=400, blocks=5):
    p = np.random.default_rng(b).dirichlet(np.full(b, 0.5), size=(tokens, blocks)).astype(dtype)
    p[0], p[1] = np.eye(b)[1], np.eye(b)[0]  # certain outcomes
    return p


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("b", [2, 4, 8, 16])
def test_shots_are_those_of_the_processor_bit_for_bit(b, dtype, place):
    p, numbers = distributions(b, dtype), np.arange(400) * 7 + (3 << 33)
    for shots in (1, 30, 8192):
        drawn = resident.sample(torch.as_tensor(p, device=place), shots, 2**62 + 12345, numbers).cpu().numpy()
        there = sampling.sample(p, shots, 2**62 + 12345, numbers)
        assert drawn.dtype == there.dtype
        assert np.mean((drawn != there).any(-1)) <= (0 if place == "cpu" else 1e-3)  # another libm may turn an ulp


def test_probabilities_that_are_not_finite_are_no_shots():
    with pytest.raises(RunFailed, match="not finite"):
        resident.sample(torch.full((1, 1, 2), torch.nan), 10, 0, np.arange(1))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("b", [2, 4, 8, pytest.param(16, marks=pytest.mark.long)])
def test_estimates_are_those_of_the_processor(b, place):
    rng, n = np.random.default_rng(b), b.bit_length() - 1
    slices = rng.normal(size=(200, 6, b))
    slices[3, 2] = 0
    units, norms = encoding.normalise(slices)
    x, sizes = resident.normalise(torch.as_tensor(slices, device=place))
    np.testing.assert_allclose(x.cpu(), units, atol=1e-12)
    np.testing.assert_allclose(sizes.cpu(), norms, atol=1e-12)
    units[3, 2], x[3, 2] = units[0, 0], x[0, 0]  # all signs of |0...0> are as likely
    errors = rng.uniform(0, 0.05, (6, n, 2))
    confusion = np.stack([1 - errors, errors[..., ::-1]], -1)
    confusion[..., 1, :] = confusion[..., 1, ::-1]
    rates = estimates.Rates(estimates.inverse_confusion(confusion), rng.uniform(0.5, 1, 6), 1e-4)
    plain = np.square(units) + 0.01 * rng.normal(size=units.shape)  # as counts give them, outside the simplex
    other = np.square(units @ estimates.rotation(n).T)
    for known in (rates, None):
        size, turned = (estimates.magnitudes(f, known) for f in (plain, other))
        found = [resident.magnitudes(torch.as_tensor(f, device=place), known) for f in (plain, other)]
        np.testing.assert_allclose(found[0].cpu(), size, atol=1e-12)
        both = resident.from_two_settings(found[0], found[1], x, known, 4096).cpu()
        np.testing.assert_allclose(both, estimates.from_two_settings(size, turned, units, known, 4096), atol=1e-9)
        signed = resident.with_signs(found[0], x).cpu()
        np.testing.assert_allclose(signed, estimates.with_signs(size, units), atol=1e-12)


def test_a_slice_that_is_not_finite_is_one_line():
    with pytest.raises(InputError, match="not finite"):
        resident.normalise(torch.tensor([[1.0, torch.inf]]))
