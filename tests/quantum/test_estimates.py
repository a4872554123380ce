"""From counts to estimates: calibration undoes what it models, settings tell signs, priors lean on x."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantum_support import FULL, rotations, unit_slices

from qrun.adapters.executor import CircuitExecutor
from qrun.config.devices import EstimateConfig, Estimator, Rates, Sign
from qrun.errors import InputError
from qrun.quantum.devices.aer import AerDevice
from qrun.quantum.devices.base import _read
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.devices.pennylane import PennyLaneDevice
from qrun.quantum.devices.shots import ShotsDevice
from qrun.quantum.estimates import (
    SLICES,
    _branched,
    fitted,
    from_two_settings,
    inverse_confusion,
    known_slices,
    magnitudes,
    posterior,
    rotation,
    soft,
    spread,
)
from qrun.quantum.estimates import Rates as Known
from qrun.quantum.noise import Noise
from qrun.quantum.wiring import Wiring

READ = Noise(read_1_given_0=0.03, read_0_given_1=0.08)


def outcomes(units, confusion, kept):
    """Probabilities [N, B, b] under readout errors [B, n, 2, 2] and a depolarising rate."""
    dim, out = units.shape[-1], np.empty_like(units)
    for j in range(units.shape[1]):
        whole = np.ones((1, 1))
        for table in confusion[j]:
            whole = np.kron(table, whole)
        out[:, j] = (kept * units[:, j] ** 2 + (1 - kept) / dim) @ whole.T
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_calibration_undoes_readout_errors_and_depolarisation(n, dtype):
    units = unit_slices(n, 40, 3)
    rng = np.random.default_rng(n)
    confusion = np.array([[[[1 - a, b], [a, 1 - b]] for a, b in rng.uniform(0, 0.2, (n, 2))] for _ in range(3)])
    known = known_slices(3, 2**n)
    inverse = inverse_confusion(confusion)
    rates = fitted(outcomes(known, confusion, 0.7), known**2, inverse)
    np.testing.assert_allclose(rates.kept, 0.7, rtol=1e-9)
    found = magnitudes(outcomes(units, confusion, 0.7).astype(dtype), rates)
    assert found.dtype == dtype
    np.testing.assert_allclose(found**2, units**2, atol=1e-9 if dtype is np.float64 else 3e-6)


@pytest.mark.parametrize(("alike", "most"), [(True, 0.5), (False, 1.2)])
def test_rates_of_blocks_are_drawn_together_where_they_are_alike(alike, most):
    rng, shots, dim = np.random.default_rng(0), 50, 4
    known = known_slices(60, dim)
    truth = np.full(60, 0.7) if alike else np.linspace(0.3, 0.95, 60)
    p = truth[:, None] * known**2 + (1 - truth[:, None]) / dim
    counts = rng.multinomial(shots, p) / shots
    identity = np.broadcast_to(np.eye(2), (60, 2, 2, 2))
    found, alone = fitted(counts, known**2, identity, shots), fitted(counts, known**2, identity)
    errors = [np.sqrt(np.mean((rates.kept - truth) ** 2)) for rates in (found, alone)]
    assert errors[0] < most * errors[1]
    counting = float((p * (1 - p)).mean() / shots)
    assert found.residual < 0.4 * counting < counting < alone.residual  # nothing is off but by counting


def test_the_residual_is_what_calibrated_probabilities_are_off_by():
    rng = np.random.default_rng(1)
    expected, off = np.full((SLICES, 3, 4), 0.25), rng.normal(scale=2e-3, size=(SLICES, 3, 4))
    expected[..., 0] += 0.1
    expected[..., 1] -= 0.1
    off -= off.mean(-1, keepdims=True)
    found = fitted(0.8 * expected + 0.05 + off, expected, np.broadcast_to(np.eye(2), (3, 2, 2, 2)))
    assert found.kept == pytest.approx([0.8] * 3, rel=0.02)
    assert found.residual == pytest.approx(np.square(off).mean() / 0.8**2, rel=0.05)


def test_counted_readout_has_the_error_of_the_gate_that_prepares_one():
    noise = Noise(sx=0.05, read_1_given_0=0.03, read_0_given_1=0.08)  # X leaves |1> with 1 - p / 2, p = 2 sx
    found = _read(noise, 10**9, np.random.default_rng(0))
    assert found[1] == pytest.approx([0.03, 0.95 * 0.92 + 0.05 * 0.03], abs=1e-4)


@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_calibrated_magnitudes_are_those_of_the_nearest_distribution(values):
    values = np.array(values)
    rates = Known(np.broadcast_to(np.eye(2), (1, 3, 2, 2)), np.ones(1))
    found = magnitudes(values[None, None], rates)[0, 0] ** 2
    ordered = np.sort(values)[::-1]  # the textbook form: Held, Wolfe and Crowder, by sorting
    totals = (np.cumsum(ordered) - 1) / np.arange(1, 9)
    expected = np.maximum(values - totals[np.flatnonzero(ordered > totals)[-1]], 0)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.sum() == pytest.approx(1)


def test_the_nearest_distribution_is_found_in_float32_too():
    """Counts at which rounding lets the search swing for ever, if it waits for two equal steps."""
    frequencies = np.array([[[4224, 90, 3351, 527]]], np.float32) / 8192
    table = np.array([[0.99463, 0.0134], [0.00537, 0.9866]])
    found = magnitudes(frequencies, Known(inverse_confusion(np.tile(table, (1, 2, 1, 1))), np.array([0.97])))
    np.testing.assert_allclose(np.square(found).sum(-1), 1, atol=1e-5)


def test_readout_that_tells_nothing_is_left_as_it_is():
    useless = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert (inverse_confusion(useless[None]) == np.eye(2)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shots", [None, 4096, 100])
def test_signs_of_sixteen_are_as_likely_as_the_best_of_all_patterns(dtype, shots):
    """Of random magnitudes, which no signs explain (None), and of counts of real amplitudes in both settings."""
    rng, r = np.random.default_rng(3), rotation(4)
    truth = unit_slices(4, 20, 1, seed=4)[:, 0]
    first, second = (np.square(a) for a in (truth, truth @ r.T))
    if shots is None:
        second = rng.dirichlet(np.ones(16), 20)
    else:
        first, second = (rng.multinomial(shots, p / p.sum(-1, keepdims=True)) / shots for p in (first, second))
    size, turned = (np.sqrt(p).astype(dtype) for p in (first, second))
    signs = np.empty(size.shape, np.int8)
    _branched(size, turned, (rotation(3) / 2**0.5).astype(dtype), signs)
    patterns = 1 - 2 * (np.arange(2**15)[:, None] >> np.arange(16) & 1)
    for m, t, found in zip(size.astype(float), turned.astype(float), signs, strict=True):
        every = np.abs((patterns * m) @ r.T) @ t
        assert np.abs(r @ (found * m)) @ t == pytest.approx(every.max(), abs=1e-12 if dtype is np.float64 else 1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_settings_tell_all_signs_but_one_and_weigh_what_both_count(n, dtype):
    """Against every pattern: the best agreement with the second setting; then weighted least squares by a library, with
    the global sign of x."""
    truth, rng = unit_slices(n, 30, 2, seed=n), np.random.default_rng(50 + n)
    r, kept, residual, shots = rotation(n), np.array([0.9, 0.8]), 1e-5, 1000
    first, second = (np.abs(t + rng.normal(0, 0.02, t.shape)) for t in (truth, truth @ r.T))
    x = truth + rng.normal(0, 0.1, truth.shape)
    rates = Known(np.broadcast_to(np.eye(2), (2, n, 2, 2)), kept, residual)
    found = from_two_settings(*(a.astype(dtype) for a in (first, second, x)), rates, shots)
    patterns = np.array(list(product([1, -1], repeat=2**n)))
    for i, j in np.ndindex(30, 2):
        images = patterns * first[i, j] @ r.T
        best = (np.abs(images) @ second[i, j]).argmax()
        a, v = patterns[best] * first[i, j], np.sign(images[best]) * second[i, j]
        y = (a + v @ r) / np.linalg.norm(a + v @ r)
        p = np.square([y, r @ y])
        root = np.sqrt(p / (p * (1 - p) / (shots * kept[j] ** 2) + residual + 1e-6))
        y = np.linalg.lstsq(np.vstack([np.diag(root[0]), root[1][:, None] * r]), np.hstack([root[0] * a, root[1] * v]),
                            rcond=None)[0]  # fmt: skip
        y *= np.sign(y @ x[i, j]) / np.linalg.norm(y)
        np.testing.assert_allclose(found[i, j], y, atol=1e-6 if dtype is np.float64 else 1e-5)


def test_two_settings_of_half_the_shots_are_as_sharp_as_one_of_all():
    truth, shots = unit_slices(3, 2000, 1), 4000
    rng = np.random.default_rng(1)

    def counted(amplitudes, number):
        return np.sqrt(rng.multinomial(number, np.square(amplitudes[:, 0]) / np.square(amplitudes).sum(-1)))[:, None]

    one = counted(truth, shots) / np.sqrt(shots) * np.sign(truth)
    halves = [counted(a, shots // 2) / np.sqrt(shots / 2) for a in (truth, truth @ rotation(3).T)]
    errors = [
        np.sqrt(np.square(a - truth).sum(-1).mean()) for a in (one, from_two_settings(*halves, truth, shots=shots // 2))
    ]
    assert errors[1] < 1.1 * errors[0]


def test_sixteen_signs_of_exact_magnitudes_are_found():
    truth = unit_slices(4, 200, 1)
    x = truth + np.random.default_rng(1).normal(0, 0.1, truth.shape)
    assert ((x < 0) != (truth < 0)).mean() > 0.05
    found = from_two_settings(np.abs(truth), np.abs(truth @ rotation(4).T), x)
    assert ((found < 0) != (truth < 0)).mean() < 0.005


@pytest.mark.parametrize("device", [ShotsDevice, NoisyDevice, AerDevice, PennyLaneDevice])
@pytest.mark.parametrize(("n", "synthesis"), [(1, "line"), (2, "line"), (3, "line"), (3, "qiskit")])
def test_the_second_setting_is_the_first_after_a_rotation_of_every_qubit(device, n, synthesis):
    dev = device(Wiring(Noise(), synthesis), None)
    blocks, units, mask = rotations(n, 2), unit_slices(n, 3, 2), np.ones((3, 2), bool)
    found = dev.run(dev.prepare(blocks, turned=True), units, mask, 0, np.arange(3))
    expected = np.einsum("jab,njb->nja", rotation(n) @ blocks, units) ** 2
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_line_circuits_second_setting_has_no_gate_more(n):
    circuits = Wiring(Noise()).circuits(rotations(n, 2))
    assert circuits.turned().counts() == circuits.counts()
    routed = Wiring(Noise(), "qiskit").circuits(rotations(n, 2)) if n in (2, 3) else None
    assert routed is None or routed.turned().counts()["cz"] == routed.counts()["cz"]


def executor(device, kind=Estimator.calibrated, sign=Sign.input, rates=Rates.measured):
    whole = CircuitExecutor(device, sign, 0, estimate=EstimateConfig(kind, rates))
    return whole, whole.site("x")


def tensors(n, tokens=60, blocks=4):
    return torch.from_numpy(rotations(n, blocks)), torch.from_numpy(3 * unit_slices(n, tokens, blocks)).float()


def near(blocks, size=0.05):
    """Rotations by about `size`."""
    return torch.linalg.matrix_exp(size * (blocks - blocks.mT) / 2)


def test_without_shots_calibration_makes_readout_errors_vanish_and_leaves_of_gates_what_is_not_uniform():
    blocks, slices = tensors(2)
    errors = {}
    for name, noise in (("read", READ), ("gates", dataclasses.replace(READ, cz=0.02))):
        for kind in (Estimator.sqrt, Estimator.calibrated):
            parent, site = executor(NoisyDevice(Wiring(noise), None), kind, Sign.exact, Rates.properties)
            site(blocks, slices)
            errors[name, kind] = parent.statistics.summary()["relative_error"]
    assert errors["read", Estimator.calibrated] < 2e-3 < 0.1 < errors["read", Estimator.sqrt]
    assert errors["gates", Estimator.calibrated] < errors["gates", Estimator.sqrt] / 3


def test_two_settings_without_noise_give_the_product_from_counts_alone():
    blocks, slices = tensors(3)
    parent, site = executor(ShotsDevice(Wiring(Noise()), None), Estimator.sqrt, Sign.two_settings)
    site(near(blocks, 0.3), slices)
    seen = parent.statistics.summary()
    assert seen["relative_error"] < 1e-3 and seen["circuits"] == 2 * 60 * 4 and seen["calibration_circuits"] == 0


def test_calibration_is_counted_once_and_measured_within_its_shots():
    blocks, slices = tensors(2)
    parent, site = executor(NoisyDevice(Wiring(dataclasses.replace(READ, cz=0.02)), 4096))
    site(blocks, slices[:20]), site(blocks, slices[20:])
    seen = parent.statistics.summary()
    assert seen["calibration_circuits"] == SLICES * 4 and seen["circuits"] == 60 * 4
    sharp, other = executor(NoisyDevice(Wiring(dataclasses.replace(READ, cz=0.02)), None), rates=Rates.properties)
    other(blocks, slices)
    assert seen["survival"] == pytest.approx(sharp.statistics.summary()["survival"], abs=0.01)
    assert seen["survival"] != sharp.statistics.summary()["survival"]


def test_calibrated_batches_give_the_same_bits():
    blocks, slices = tensors(3)
    noise = dataclasses.replace(FULL, name="all")
    whole = executor(NoisyDevice(Wiring(noise), 500), sign=Sign.two_settings)[1](blocks, slices)
    site = executor(NoisyDevice(Wiring(noise), 500), sign=Sign.two_settings)[1]
    assert torch.equal(torch.cat([site(blocks, part) for part in slices.split([1, 20, 39])]), whole)


def test_a_prior_falls_back_on_x_as_noise_grows():
    blocks, slices = tensors(2, blocks=1)
    blocks, noisy = near(blocks), Noise(block=0.97)
    site = executor(NoisyDevice(Wiring(noisy), 200), Estimator.posterior)[1]
    leaning = (site(blocks, slices) - slices).norm() / slices.norm()
    other = executor(NoisyDevice(Wiring(noisy), 200))[1]
    free = (other(blocks, slices) - slices).norm() / slices.norm()
    assert leaning < free / 1.5
    assert {kind for kind in Estimator if EstimateConfig(kind).leans} == {Estimator.soft, Estimator.posterior}


def test_a_prior_of_no_width_gives_x_one_of_some_the_count_and_a_wide_one_no_sign():
    size, x = np.array([[[0.8, 0.6]]]), np.array([[[0.7, -0.7]]])
    np.testing.assert_allclose(posterior(size, x, np.array([[1e-6]]), np.array([[1e-2]])), x, atol=1e-6)
    np.testing.assert_allclose(posterior(size, x, np.array([[0.3]]), np.array([[1e-6]])), [[[0.8, -0.6]]], atol=1e-3)
    np.testing.assert_allclose(posterior(size, x, np.array([[1e2]]), np.array([[1e-6]])), [[[0, 0]]], atol=1e-4)
    np.testing.assert_allclose(soft(size, x, np.array([[1e-3]])), [[[0.8, -0.6]]])
    assert spread(np.eye(4)[None]).item() < 1e-6


def test_a_sign_constrained_adapter_takes_the_signs_of_x():
    with pytest.raises(InputError, match=r"signs=two_settings: .*use signs=input"):
        CircuitExecutor(ShotsDevice(Wiring(Noise()), 10), Sign.two_settings, 0, constrained=True)
