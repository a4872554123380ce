"""Ways to write a block beside `line`: merged, direct, and with a reference amplitude on one more qubit."""

import numpy as np
import pytest
import torch
from quantum_support import FULL, rotations, unit_slices
from scipy.linalg import expm

from qrun.adapters.circuit import palindrome
from qrun.adapters.executor import CircuitExecutor
from qrun.config.compose import compose
from qrun.config.devices import EstimateConfig, Estimator, Sign
from qrun.errors import InputError
from qrun.quantum.cache import BlockCache
from qrun.quantum.circuits import with_reference
from qrun.quantum.devices.aer import AerDevice
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.devices.pennylane import PennyLaneDevice
from qrun.quantum.devices.shots import ShotsDevice
from qrun.quantum.estimates import beside_reference, from_reference
from qrun.quantum.noise import Noise
from qrun.quantum.synthesis import unitary
from qrun.quantum.wiring import Wiring


def run(device, blocks, units):
    mask = np.ones(units.shape[:2], bool)
    return device.run(device.prepare(blocks), units, mask, 0, np.arange(len(units)))


def near_identity(n, blocks, size, seed=0):
    skew = np.random.default_rng(seed).normal(size=(blocks, 2**n, 2**n))
    return np.array([expm(size * (k - k.T) / 2) for k in skew])


@pytest.mark.parametrize(("circuit", "n", "czs"), [
    ("merged", 3, 14), ("direct", 1, 0), ("direct", 2, 1), ("direct", 3, 3), ("direct", 4, 14), ("line", 3, 17),
])  # fmt: skip
def test_every_way_to_write_a_block_gives_the_squares_of_the_rotated_slice(circuit, n, czs):
    for blocks in (rotations(n, 6), near_identity(n, 6, 0.05)):
        units, wiring = unit_slices(n, 5, 6), Wiring(Noise(), circuit)
        assert wiring.circuits(blocks).counts()["cz"] == 6 * czs
        ideal = np.einsum("jab,njb->nja", blocks, units) ** 2
        np.testing.assert_allclose(run(NoisyDevice(wiring, None, np.float64), blocks, units), ideal, atol=1e-9)


def test_what_merging_does_not_find_is_written_on_a_line():
    blocks, units = np.concatenate([near_identity(3, 2, 1e-7), rotations(3, 1)]), unit_slices(3, 5, 3)
    blocks[1, 0] *= -1  # a reflection is no circuit of RY and CZ alone
    wiring = Wiring(Noise(), "merged")
    found = wiring.circuits(blocks)
    assert np.array_equal(found.before[1], np.eye(8)) and found.take([2]).counts()["cz"] == 14
    ideal = np.einsum("jab,njb->nja", blocks, units) ** 2
    np.testing.assert_allclose(run(NoisyDevice(wiring, None, np.float64), blocks, units), ideal, atol=1e-9)


@pytest.mark.parametrize("circuit", ["merged", "direct"])
def test_devices_agree_on_what_is_encoded(circuit, tmp_path):
    blocks, units, wiring = rotations(3, 2), unit_slices(3, 4, 2), Wiring(FULL, circuit)
    noisy = run(NoisyDevice(wiring, None, np.float64), blocks, units)
    for device in (
        AerDevice(wiring, None), PennyLaneDevice(wiring, None), NoisyDevice(wiring, None, np.float64, accelerator="cpu")
    ):  # fmt: skip
        np.testing.assert_allclose(run(device, blocks, units), noisy, atol=1e-9)
    for _ in range(2):  # written, and read again
        kept = NoisyDevice(wiring, None, np.float64, BlockCache(tmp_path))
        np.testing.assert_array_equal(run(kept, blocks, units), noisy)


@pytest.mark.parametrize("circuit", ["line", "qiskit", "direct"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_reference_is_a_qubit_that_the_block_leaves_alone(n, circuit):
    blocks, units, wiring = rotations(n, 3), unit_slices(n + 1, 4, 3), Wiring(Noise(), circuit, reference=True)
    ideal = np.einsum("jab,njb->nja", with_reference(blocks), units) ** 2
    for device in (NoisyDevice(wiring, None, np.float64), ShotsDevice(wiring, None, np.float64)):
        np.testing.assert_allclose(run(device, blocks, units), ideal, atol=1e-9)


def test_devices_agree_on_circuits_with_a_reference():
    blocks, units, wiring = rotations(3, 2), unit_slices(4, 3, 2), Wiring(FULL, reference=True)
    noisy = run(NoisyDevice(wiring, None, np.float64), blocks, units)
    np.testing.assert_allclose(run(AerDevice(wiring, None), blocks, units), noisy, atol=1e-9)
    chip = Wiring(Noise(calibration="FakeMarrakesh"), keep=0.5, reference=True)
    there = run(NoisyDevice(chip, None, np.float64), blocks, units)
    np.testing.assert_allclose(run(AerDevice(chip, None), blocks, units), there, atol=1e-9)


@pytest.mark.parametrize("b", [2, 4, 8])
def test_a_reference_tells_every_sign_and_nothing_of_x_is_needed(b):
    n = b.bit_length() - 1
    blocks, units = rotations(n, 4), unit_slices(n, 200, 4)
    product = np.einsum("jab,njb->nja", blocks, units)
    ideal = np.einsum("jab,njb->nja", with_reference(blocks), beside_reference(units, blocks)) ** 2
    np.testing.assert_allclose(ideal.sum(-1), 1, atol=1e-12)
    for values in (np.sqrt(ideal), torch.from_numpy(np.sqrt(ideal))):
        np.testing.assert_allclose(from_reference(values), product, atol=1e-9)


@pytest.mark.parametrize("estimator", [Estimator.sqrt, Estimator.calibrated])
def test_an_adapters_estimate_beside_a_reference_is_the_product(estimator):
    blocks, slices = torch.from_numpy(rotations(2, 4)), torch.from_numpy(3 * unit_slices(2, 50, 4)).float()
    errors = []
    for noise, shots in ((Noise(), None), (Noise(read_1_given_0=0.02, read_0_given_1=0.03, cz=3e-3), 8192)):
        for place in (None, "cpu"):
            device = NoisyDevice(Wiring(noise, reference=True), shots, accelerator=place)
            executor = CircuitExecutor(device, Sign.reference, 0, estimate=EstimateConfig(estimator))
            executor.site("v")(blocks, slices)
            errors.append(executor.statistics.summary()["relative_error"])
    assert errors[0] < 1e-5 > errors[1] and errors[2] == pytest.approx(errors[3], rel=1e-4)
    assert errors[2] < (0.04 if estimator is Estimator.calibrated else 0.2)


@pytest.mark.parametrize(("words", "said"), [
    (["estimate=posterior", "signs=reference"], "takes signs from x"),
    (["circuit=merged", "signs=reference"], "has no device.circuit=merged"),
    (["estimate=posterior", "device.allocation=effect"], "effect: estimate.kind=posterior counts all alike"),
    (["circuit=nothing"], "circuit has direct, line, merged, qiskit"),
    (["device.circuit=nothing"], "use line, qiskit, merged, direct"),
])  # fmt: skip
def test_words_that_do_not_go_together_are_one_line(words, said):
    with pytest.raises(InputError, match=said):
        compose("perplexity", ["device=noisy", *words])


def test_what_a_way_cannot_write_is_one_line():
    with pytest.raises(InputError, match=r"circuit=merged: for b = 8 .*b = 4 has circuit=line"):
        NoisyDevice(Wiring(Noise(), "merged"), 10).prepare(rotations(2, 1))
    with pytest.raises(InputError, match=r"adapter.dim=16: signs=reference has circuits for b = 2, 4 and 8"):
        NoisyDevice(Wiring(Noise(), reference=True), 10).prepare(rotations(4, 1))


@pytest.mark.parametrize(("n", "czs"), [(1, 0), (2, 2), (3, 6), (4, 10)])
@pytest.mark.parametrize("reference", [False, True])
def test_blocks_that_are_circuits_run_as_they_are(n, czs, reference):
    if n > 2 and reference:
        pytest.skip("beside a reference bits do not lie in the order of these circuits")
    shape, prepared = palindrome(n, czs), {1: 0, 2: 1, 3: 3, 4: 14}[n + reference]
    angles = np.random.default_rng(n).uniform(-3, 3, (5, shape.angles))
    blocks, units = unitary(angles, shape), unit_slices(n + reference, 4, 5)
    wiring = Wiring(Noise(), reference=reference, ansatz=shape)
    device = NoisyDevice(wiring, None, np.float64)
    made = device.prepare(blocks, written=(angles, shape))
    assert made.circuits.counts()["cz"] == 5 * (prepared + czs) == 5 * wiring.counts(2**n)["cz"]
    meant = np.einsum("jab,njb->nja", with_reference(blocks) if reference else blocks, units) ** 2
    found = device.run(made, units, np.ones((4, 5), bool), 0, np.arange(4))
    np.testing.assert_allclose(found, meant, atol=1e-9)
