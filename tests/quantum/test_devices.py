"""One conformance suite for every device, and the fast simulator against Aer and default.mixed."""

from importlib import import_module

import numpy as np
import pytest
from quantum_support import FULL, rotations, unit_slices
from scipy.stats import chisquare

from qrun.config.compose import compose
from qrun.errors import InputError, RunFailed
from qrun.quantum import sampling
from qrun.quantum.cache import BlockCache
from qrun.quantum.devices import KINDS
from qrun.quantum.devices.aer import AerDevice
from qrun.quantum.devices.base import Setting
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.devices.pennylane import PennyLaneDevice
from qrun.quantum.devices.shots import ShotsDevice
from qrun.quantum.encoding import normalise
from qrun.quantum.noise import Noise
from qrun.quantum.sampling import sample
from qrun.quantum.wiring import Wiring

MAKERS = {
    "shots": lambda shots: ShotsDevice(Wiring(Noise()), shots, np.float64),
    "noisy": lambda shots: NoisyDevice(Wiring(Noise()), shots, np.float64),
    "noisy-float32": lambda shots: NoisyDevice(Wiring(Noise()), shots),
    "default.qubit": lambda shots: PennyLaneDevice(Wiring(Noise()), shots),
    "lightning.qubit": lambda shots: PennyLaneDevice(Wiring(Noise()), shots, "lightning.qubit"),
    "default.mixed": lambda shots: PennyLaneDevice(Wiring(Noise()), shots, "default.mixed"),
    "aer": lambda shots: AerDevice(Wiring(Noise()), shots),
}
SLOW = ("default.mixed", "lightning.qubit", "aer", "default.qubit")


def run(device, blocks, units, key=1):
    mask = np.ones(units.shape[:2], bool)
    return device.run(device.prepare(blocks), units, mask, key, np.arange(len(units)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_device_has_a_module_that_opens_it_and_says_whether_it_takes_noise(kind, tmp_path, monkeypatch):
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    words = [f"device={kind}", *(["device.shots=null"] if kind not in ("fake", "ibm") else [])]
    config = compose("perplexity", [*words, "data=pydoc"]).device
    setting = Setting(config, Noise(block=1.0), tmp_path)
    if kind == "ibm":
        with pytest.raises(InputError, match="set QISKIT_IBM_TOKEN"):
            import_module(f"qrun.quantum.devices.{kind}").open(setting)
        return
    device = import_module(f"qrun.quantum.devices.{kind}").open(setting)
    assert device.name == config.kind == kind and config.takes_noise == (kind in ("aer", "noisy", "pennylane"))
    if config.takes_noise:
        np.testing.assert_allclose(run(device, rotations(1, 1), unit_slices(1, 2, 1)), 0.5, atol=1e-6)
    else:
        with pytest.raises(InputError, match=f"device.kind={kind} has no noise model; use device=noisy"):
            compose("perplexity", [f"device={kind}", "noise=none", "noise.cz=0.1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_noiseless_probabilities_are_the_squares_of_the_rotated_slice(name, n):
    if n > 4 and name in SLOW:
        n = 4 if name != "default.mixed" else 3
    blocks, units = rotations(n, 2), unit_slices(n, 3, 2)
    tolerance = (
        2e-6 if name == "noisy-float32" else 1e-9 if n < 6 else 1e-6
    )  # two thousand synthesised gates, each rounded
    np.testing.assert_allclose(
        run(MAKERS[name](None), blocks, units), np.einsum("jab,njb->nja", blocks, units) ** 2, atol=tolerance
    )


@pytest.mark.parametrize("name", MAKERS)
def test_identity_blocks_return_the_slice(name):
    units = unit_slices(2, 3, 2)
    np.testing.assert_allclose(run(MAKERS[name](None), np.stack([np.eye(4)] * 2), units), units**2, atol=2e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_shots_add_up_repeat_by_seed_and_approach_the_probabilities(name):
    blocks, units = rotations(2, 2), unit_slices(2, 5, 2)
    exact = run(MAKERS[name](None), blocks, units)
    counts = run(MAKERS[name](1000), blocks, units) * 1000
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-2)
    np.testing.assert_allclose(counts.sum(-1), 1000, rtol=1e-6)
    np.testing.assert_array_equal(run(MAKERS[name](1000), blocks, units) * 1000, counts)
    assert not np.array_equal(run(MAKERS[name](1000), blocks, units, key=2) * 1000, counts)
    errors = [np.abs(run(MAKERS[name](shots), blocks, units) - exact).max() for shots in (100, 10_000, 1_000_000)]
    assert errors[2] < 0.003 and errors[2] < errors[0]


@pytest.mark.parametrize("name", MAKERS)
def test_bad_blocks_and_shots_are_refused(name):
    with pytest.raises(InputError, match="not orthogonal"):
        MAKERS[name](10).prepare(np.ones((1, 4, 4)))
    with pytest.raises(InputError, match="not orthogonal"):
        MAKERS[name](10).prepare(np.full((1, 4, 4), np.nan))
    with pytest.raises(InputError, match="nearest that do are 2 and 4"):
        MAKERS[name](10).prepare(np.eye(3)[None])
    with pytest.raises(InputError, match="7 qubits"):
        MAKERS[name](10).prepare(np.eye(128)[None])
    with pytest.raises(InputError, match=r"device.shots=0"):
        MAKERS[name](0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise",
    [
        FULL,
        Noise(sx=3e-4, cz=3e-3),
        Noise(t1_us=30, t2_us=50, sx_ns=40, cz_ns=90),
        Noise(read_1_given_0=0.03, read_0_given_1=0.1),
        Noise(sx=0.5, cz=0.75),
        Noise(sx=3e-4, cz=3e-3, dephasing=0.02),
    ],
    ids=["all", "depolarising", "thermal", "readout", "complete", "dephasing"],
)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_fast_simulator_agrees_with_aer_under_every_noise(n, noise):
    blocks, units = rotations(n, 1, seed=n), unit_slices(n, 3, 1, seed=n)
    units[2] = np.eye(2**n)[-1]  # a basis state: zeros and signs in the tree
    reference = run(AerDevice(Wiring(noise), None), blocks, units)
    np.testing.assert_allclose(run(NoisyDevice(Wiring(noise), None, np.float64), blocks, units), reference, atol=1e-9)
    np.testing.assert_allclose(run(NoisyDevice(Wiring(noise), None), blocks, units), reference, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_torch_form_of_the_simulator_agrees_with_the_kernel(n, monkeypatch):
    from qrun.quantum import accelerated

    blocks, units = rotations(n, 3, seed=n), unit_slices(n, 7, 3, seed=n)
    units[2] = np.eye(2**n)[-1]
    units[3] = -np.eye(2**n)[0]
    kernel = run(NoisyDevice(Wiring(FULL), None, np.float64), blocks, units)
    monkeypatch.setattr(accelerated, "STATE", 4**n * 3 * 2)  # two tokens at a time
    np.testing.assert_allclose(
        run(NoisyDevice(Wiring(FULL), None, np.float64, accelerator="cpu"), blocks, units), kernel, atol=1e-9
    )
    np.testing.assert_allclose(
        run(NoisyDevice(Wiring(FULL), None, accelerator="cpu"), blocks, units), kernel, atol=2e-6
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_fast_simulator_agrees_with_pennylanes_density_matrix(n):
    blocks, units = rotations(n, 1, seed=n), unit_slices(n, 2, 1, seed=n)
    np.testing.assert_allclose(
        run(NoisyDevice(Wiring(FULL), None, np.float64), blocks, units),
        run(PennyLaneDevice(Wiring(FULL), None), blocks, units),
        atol=1e-9,
    )


def test_complete_depolarisation_gives_the_uniform_distribution():
    for noise in (Noise(block=1.0), Noise(sx=0.5, cz=0.75)):
        np.testing.assert_allclose(
            run(NoisyDevice(Wiring(noise), None), rotations(3, 1), unit_slices(3, 4, 1)), 1 / 8, atol=1e-6
        )


def test_one_block_channel_mixes_in_the_uniform_distribution():
    blocks, units = rotations(2, 1), unit_slices(2, 4, 1)
    clean = run(NoisyDevice(Wiring(Noise()), None, np.float64), blocks, units)
    np.testing.assert_allclose(
        run(NoisyDevice(Wiring(Noise(block=0.2)), None, np.float64), blocks, units), 0.8 * clean + 0.2 / 4, atol=1e-12
    )


@pytest.mark.parametrize("split", [1, 7, 40])
@pytest.mark.parametrize("n", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bits_on_any_split(n, split):
    device = NoisyDevice(Wiring(FULL), 500)
    blocks, units = rotations(n, 3), unit_slices(n, 150, 3)
    prepared, mask, numbers = device.prepare(blocks), np.ones((150, 3), bool), np.arange(150)
    whole = device.run(prepared, units, mask, 7, numbers)
    parts = [
        device.run(prepared, units[s : s + split], mask[s : s + split], 7, numbers[s : s + split])
        for s in range(0, 150, split)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_two_settings_share_a_simulation_and_give_the_bits_that_each_gives_alone(n, monkeypatch):
    from qrun.quantum.devices import noisy

    device = NoisyDevice(Wiring(FULL), 500)
    blocks, units = rotations(n, 19), unit_slices(n, 70, 19).astype(np.float32)
    mask, numbers, simulated = np.ones((70, 19), bool), np.arange(70), []
    made = [device.prepare(blocks), device.prepare(blocks, turned=True), device.prepare(rotations(n, 19, seed=9))]
    alone = [device.run(own, units, mask, 7, numbers) for own in made]
    through = noisy.probabilities
    monkeypatch.setattr(noisy, "probabilities", lambda x, *p: simulated.append(len(p)) or through(x, *p))
    together = device.run_all([(own, units, mask, 7, numbers) for own in made])
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(together[0], together[1])
    assert simulated == ([1, 1, 1] if n == 1 else [2, 1])  # of one qubit both settings are one RY, of the whole angle
    device.run_all([(own, units.copy(), mask, 7, numbers) for own in made])
    assert simulated[-3:] == [1, 1, 1]  # other slices


@pytest.mark.parametrize("shots", [1, 7, 100, 8192])
@pytest.mark.parametrize("p", [[0.5, 0.3, 0.15, 0.04, 0.01], [0.97, 0.03], [1e-4, 0.9998, 0.0, 1e-4], [0.25] * 4])
def test_sampled_counts_follow_the_multinomial_distribution(p, shots):
    rows = 20_000
    counts = sample(np.tile(p, (rows, 1, 1)), shots, 11, np.arange(rows))[:, 0] * shots
    total, expected = counts.sum(0), np.array(p) * rows * shots
    possible = expected > 0
    assert (total[~possible] == 0).all()
    assert chisquare(total[possible], expected[possible] * total.sum() / expected.sum()).pvalue > 1e-4
    variance = shots * np.array(p) * (1 - np.array(p))
    np.testing.assert_allclose(counts.var(0), variance, rtol=0.08, atol=1e-3)


def test_binomial_draws_follow_the_exact_distribution_in_both_methods():
    from scipy.stats import binom

    for n, p in ((40, 0.1), (200, 0.3), (8192, 0.4)):
        draws = np.round(sample(np.tile([p, 1 - p], (60_000, 1, 1)), n, 3, np.arange(60_000))[:, 0, 0] * n).astype(int)
        low, high = binom.ppf([0.01, 0.99], n, p).astype(int)
        cells = np.clip(draws, low, high) - low
        weights = binom.pmf(np.arange(low, high + 1), n, p)
        weights[0], weights[-1] = binom.cdf(low, n, p), binom.sf(high - 1, n, p)
        assert chisquare(np.bincount(cells, minlength=high - low + 1), weights * len(draws)).pvalue > 1e-4


def test_shots_of_their_own_share_one_table_of_factorials():
    p, before = np.full((1, 2, 4), 0.25), sampling._log_factorials.cache_info().currsize
    for most in range(2100, 2110):
        sample(p, np.array([[5, most]]), 1, np.arange(1))
    assert sampling._log_factorials.cache_info().currsize <= before + 1


@pytest.mark.slow
def test_prepared_blocks_come_back_from_disk(tmp_path, monkeypatch):
    blocks, units = rotations(4, 4), unit_slices(4, 5, 4)
    first = run(NoisyDevice(Wiring(FULL), None, cache=BlockCache(tmp_path)), blocks, units)
    assert {p.name.split("-")[0] for p in tmp_path.iterdir()} == {"circuits"}
    monkeypatch.setattr("qrun.quantum.wiring.block_circuits", lambda *_: pytest.fail("synthesised again"))
    np.testing.assert_array_equal(
        run(NoisyDevice(Wiring(FULL), None, cache=BlockCache(tmp_path)), blocks, units), first
    )
    other = Noise(cz=0.01)  # another noise: circuits from disk, new readout matrices
    assert not np.allclose(run(NoisyDevice(Wiring(other), None, cache=BlockCache(tmp_path)), blocks, units), first)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    monkeypatch.undo()
    np.testing.assert_array_equal(
        run(NoisyDevice(Wiring(FULL), None, cache=BlockCache(tmp_path)), blocks, units), first
    )


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "options"), [("reference.qubit", {}), ("qiskit.basicsim", {}),
                                                  ("qiskit.aer", {"method": "statevector"})])  # fmt: skip
def test_any_installed_plugin_runs_the_circuits(backend, options):
    blocks, units = rotations(2, 2), unit_slices(2, 2, 2)
    found = run(PennyLaneDevice(Wiring(Noise()), 20_000, backend, options), blocks, units)
    np.testing.assert_allclose(found, np.einsum("jab,njb->nja", blocks, units) ** 2, atol=0.02)
    np.testing.assert_allclose(found.sum(-1), 1)


@pytest.mark.parametrize(
    ("backend", "shots", "noise", "options", "said"),
    [
        ("ionq.simulator", 100, Noise(), {}, "no such PennyLane device; installed are default.clifford"),
        ("qiskit.basicsim", None, Noise(), {}, "draws its own shots"),
        ("qiskit.basicsim", 100, Noise(read_1_given_0=0.1), {}, "has its own noise"),
        ("lightning.qubit", 100, Noise(cz=0.1), {}, "cannot hold gate noise"),
        ("default.qubit", 100, Noise(), {"colour": "red"}, "TypeError"),
    ],
)
def test_what_a_plugin_cannot_do_is_one_line(backend, shots, noise, options, said):
    with pytest.raises(InputError, match=said):
        PennyLaneDevice(Wiring(noise), shots, backend, options).prepare(rotations(2, 1))


def test_memory_that_is_short_halves_the_rows(monkeypatch):
    import torch

    from qrun.quantum import accelerated

    blocks, units = rotations(2, 2), unit_slices(2, 8, 2)
    whole, sizes = run(NoisyDevice(Wiring(FULL), None, accelerator="cpu"), blocks, units), []
    measure = accelerated._measure

    def short(part, *rest):
        sizes.append(len(part))
        if len(part) > 3:
            raise torch.cuda.OutOfMemoryError("no room")
        return measure(part, *rest)

    monkeypatch.setattr(accelerated, "_measure", short)
    monkeypatch.setattr(accelerated, "STATE", 4**2 * 2 * 8)
    np.testing.assert_allclose(run(NoisyDevice(Wiring(FULL), None, accelerator="cpu"), blocks, units), whole, atol=1e-7)
    assert sizes == [8, 4, 2, 2, 2, 2]


@pytest.mark.parametrize("n", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_slices_over_forty_decades_give_probabilities_in_float32(n):
    rng = np.random.default_rng(n)
    slices = rng.normal(size=(300, 1, 2**n)) * 10.0 ** rng.uniform(-40, 0, (300, 1, 2**n))
    slices[rng.random(slices.shape) < 0.2] = 0
    slices[..., 0] += 10.0 ** rng.uniform(-8, 0, (300, 1))
    units = normalise(slices)[0]
    blocks, numbers = rotations(n, 1), np.arange(300)
    for noise in (Noise(), FULL):
        device = NoisyDevice(Wiring(noise), None)
        prepared, found = device.prepare(blocks), []
        for size in (1, 7, 40, 300):  # one slice, part of a chunk, most of one, several
            cuts = range(0, 300, size)
            parts = [units[s : s + size].astype(np.float32) for s in cuts]
            runs = [device.run(prepared, p, np.ones(p.shape[:2], bool), 0, numbers[: len(p)]) for p in parts]
            found.append(np.concatenate(runs))
            np.testing.assert_array_equal(found[-1], found[0])
        np.testing.assert_allclose(found[0].sum(-1), 1, atol=5e-6)
        if noise.ideal:  # with noise, what is nearly no rotation may be one of several circuits
            np.testing.assert_allclose(found[0], np.einsum("jab,njb->nja", blocks, units) ** 2, atol=5e-6)


def test_probabilities_that_are_not_finite_are_refused():
    p = np.full((2, 1, 4), 0.25)
    p[1, 0, 2] = np.nan
    with pytest.raises(RunFailed, match="not finite"):
        sample(p, 10, 1, np.arange(2))


def test_pennylane_qiskits_device_agrees_within_shot_noise():
    blocks, units = rotations(2, 1), unit_slices(2, 2, 1)
    noise = Noise(sx=3e-3, cz=2e-2, read_1_given_0=0.02, read_0_given_1=0.04)
    counted = run(AerDevice(Wiring(noise), 20_000, "pennylane"), blocks, units)
    np.testing.assert_allclose(counted, run(NoisyDevice(Wiring(noise), None, np.float64), blocks, units), atol=0.02)
    with pytest.raises(InputError, match="only counts"):
        run(AerDevice(Wiring(noise), None, "pennylane"), blocks, units)
