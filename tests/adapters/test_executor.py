"""Adapters on devices: sign rule, zero slices, streams of shots, agreement with the exact device."""

import numpy as np
import pytest
import torch

from qrun.adapters.cayley import cayley
from qrun.adapters.executor import CircuitExecutor, exact
from qrun.adapters.linear import attach, detach
from qrun.adapters.sites import sites
from qrun.config.devices import Allocation, EstimateConfig, Estimator, Sign
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.devices.shots import ShotsDevice
from qrun.quantum.noise import Noise
from qrun.quantum.wiring import Wiring
from qrun.rows import numbered

BLOCKS = cayley(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), 4)
SLICES = torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(1)) * 3


def site(device, sign=Sign.input, seed=0, name="layers.0.self_attn.v_proj"):
    executor = CircuitExecutor(device, sign, seed)
    return executor.site(name), executor


@pytest.mark.parametrize(
    "make", [lambda: ShotsDevice(Wiring(Noise()), None), lambda: NoisyDevice(Wiring(Noise()), None)]
)
def test_without_shots_and_noise_exact_signs_give_the_exact_product(make):
    run, _ = site(make(), Sign.exact)
    torch.testing.assert_close(run(BLOCKS, SLICES), exact(BLOCKS, SLICES), atol=2e-3, rtol=1e-4)


def test_input_signs_are_the_papers_rule():
    run, executor = site(ShotsDevice(Wiring(Noise()), None))
    product, found = exact(BLOCKS, SLICES), run(BLOCKS, SLICES)
    assert torch.equal(found < 0, SLICES < 0)
    torch.testing.assert_close(found.abs(), product.abs(), atol=1e-3, rtol=1e-4)
    seen = executor.statistics.summary()
    assert seen["sign_flips"] == pytest.approx(((product < 0) != (SLICES < 0)).float().mean().item(), abs=1e-6)
    error = ((found - product).square().sum() / SLICES.square().sum()).sqrt().item()
    assert seen["relative_error"] == pytest.approx(error, rel=1e-3)
    cosine = (SLICES * product).sum(-1) / SLICES.square().sum(-1)
    assert seen["rotation_degrees"] == pytest.approx(cosine.clamp(-1, 1).acos().rad2deg().mean().item(), rel=1e-3)


def test_norms_are_kept_without_noise():
    run, _ = site(ShotsDevice(Wiring(Noise()), 100))
    torch.testing.assert_close(run(BLOCKS, SLICES).norm(dim=-1), SLICES.norm(dim=-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: ShotsDevice(Wiring(Noise()), 10), lambda: NoisyDevice(Wiring(Noise(cz=0.1)), 10)]
)
def test_zero_slices_give_zero_and_count_as_no_circuit(make):
    slices = SLICES.clone()
    slices[3] = 0
    slices[4, 2] = 0
    run, executor = site(make())
    found = run(BLOCKS, slices)
    assert (found[3] == 0).all() and (found[4, 2] == 0).all() and torch.isfinite(found).all()
    assert executor.statistics.circuits == 50 * 6 - 7 and executor.statistics.empty == 7


def test_batches_in_order_give_the_same_bits_and_sites_and_seeds_differ():
    noise = Noise(cz=0.01, read_0_given_1=0.02)
    whole = site(NoisyDevice(Wiring(noise), 200))[0](BLOCKS, SLICES)
    run, _ = site(NoisyDevice(Wiring(noise), 200))
    assert torch.equal(torch.cat([run(BLOCKS, part) for part in SLICES.split([1, 20, 29])]), whole)
    assert not torch.equal(site(NoisyDevice(Wiring(noise), 200), seed=1)[0](BLOCKS, SLICES), whole)
    assert not torch.equal(
        site(NoisyDevice(Wiring(noise), 200), name="layers.1.self_attn.v_proj")[0](BLOCKS, SLICES), whole
    )


def test_padding_runs_no_circuit_and_a_numbered_position_has_the_same_shots_in_any_batch():
    noise = Noise(cz=0.01, read_0_given_1=0.02)
    whole, executor = site(NoisyDevice(Wiring(noise), 200))
    with numbered(np.arange(50)):
        expected = whole(BLOCKS, SLICES)
    assert executor.statistics.circuits == 50 * 6
    padded, executor = site(NoisyDevice(Wiring(noise), 200))
    order = np.array([7, -1, 3, -1, 49])
    with numbered(order):
        found = padded(BLOCKS, SLICES[np.where(order < 0, 0, order)])
    assert torch.equal(found[order >= 0], expected[order[order >= 0]]) and (found[order < 0] == 0).all()
    assert executor.statistics.circuits == 3 * 6


def test_a_sign_constrained_adapter_is_measured_against_what_it_computes():
    device = ShotsDevice(Wiring(Noise()), None)
    executor = CircuitExecutor(device, Sign.input, 0, constrained=True)
    executor.site("x")(BLOCKS, SLICES)
    assert executor.statistics.summary()["relative_error"] < 1e-5
    plain = CircuitExecutor(device, Sign.input, 0)
    plain.site("x")(BLOCKS, SLICES)
    assert plain.statistics.summary()["relative_error"] > 0.01
    with pytest.raises(InputError, match="use signs=input"):
        CircuitExecutor(device, Sign.exact, 0, constrained=True)


def test_changed_blocks_are_prepared_again():
    run, _ = site(ShotsDevice(Wiring(Noise()), None), Sign.exact)
    run(BLOCKS, SLICES)
    other = BLOCKS.transpose(1, 2).contiguous()
    torch.testing.assert_close(run(other, SLICES), exact(other, SLICES), atol=2e-3, rtol=1e-4)


def test_error_shrinks_as_shots_grow():
    errors = []
    for shots in (100, 10_000, 1_000_000):
        run, executor = site(ShotsDevice(Wiring(Noise()), shots), Sign.exact)
        run(BLOCKS, SLICES)
        errors.append(executor.statistics.summary()["relative_error"])
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_nan_slices_are_refused():
    slices = SLICES.clone()
    slices[0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        site(ShotsDevice(Wiring(Noise()), 10))[0](BLOCKS, slices)


def test_complete_noise_returns_the_uniform_magnitude():
    run, _ = site(NoisyDevice(Wiring(Noise(block=1.0)), None))
    np.testing.assert_allclose(
        run(BLOCKS, SLICES).abs(), SLICES.norm(dim=-1, keepdim=True).expand(-1, -1, 4) / 2, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("estimator", "sign"),
    [
        (Estimator.sqrt, Sign.input), (Estimator.sqrt, Sign.exact), (Estimator.calibrated, Sign.input),
        (Estimator.calibrated, Sign.two_settings), (Estimator.soft, Sign.input), (Estimator.posterior, Sign.input),
    ],
)  # fmt: skip
def test_an_accelerators_estimates_and_statistics_are_the_processors(estimator, sign):
    """In torch on the processor: what a GPU runs. Only its own slices and its result cross over."""
    noise, found = Noise(sx=1e-3, cz=1e-2, read_1_given_0=0.02, read_0_given_1=0.04), []
    slices = SLICES.clone()
    slices[7, 2] = 0
    for place in (None, "cpu"):
        device = NoisyDevice(Wiring(noise), 8192, np.float64, accelerator=place)
        executor = CircuitExecutor(device, sign, 0, estimate=EstimateConfig(estimator))
        run = executor.site("v")
        found.append((run(BLOCKS, slices), run(BLOCKS, slices[:9]), executor.statistics.summary()))
    (first, again, here), (first_there, again_there, there) = found
    torch.testing.assert_close(first, first_there, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, again_there, atol=1e-5, rtol=0)
    assert here.pop("circuit_seconds") > 0 < there.pop("circuit_seconds")
    assert there == pytest.approx(here, rel=1e-6)


def test_on_an_accelerator_nothing_goes_to_the_processor_between_slices_and_estimates(monkeypatch):
    device = NoisyDevice(Wiring(Noise(cz=1e-2)), 8192, accelerator="cpu")
    run, _ = site(device)
    run(BLOCKS, SLICES)
    for name in ("numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name}"))
    assert run(BLOCKS, SLICES).shape == SLICES.shape


def test_shots_by_effect_are_as_many_in_all_and_make_the_error_behind_the_projection_smaller():
    slices = SLICES * torch.tensor([1, 1, 1, 2, 4, 8.0])[:, None]
    slices[5, 1] = 0
    effect = torch.tensor([1.0, 1, 2, 1, 1, 4])
    errors = {}
    for allocation in Allocation:
        executor = CircuitExecutor(ShotsDevice(Wiring(Noise()), 400), Sign.exact, 0, allocation=allocation)
        run = executor.site("v", effect)
        difference = (run(BLOCKS, slices) - exact(BLOCKS, slices)).square().sum(-1)
        errors[allocation] = float((difference * effect**2).sum())
    assert errors[Allocation.effect] < 0.6 * errors[Allocation.equal]
    shares = run.shares(slices.norm(dim=-1))
    assert torch.equal(shares.sum(-1), 400 * (slices.norm(dim=-1) > 0).sum(-1))
    assert shares[5, 1] == 0 and (shares[0] >= 50).all() and shares[0, 5] > 4 * shares[0, 4]
    parts = torch.cat([run.shares(part) for part in slices.norm(dim=-1).split([1, 20, 29])])
    assert torch.equal(parts, shares)  # of a token alone, whatever the batch


@pytest.mark.parametrize("shots", [1, 4, 12])
def test_few_shots_by_effect_leave_no_slice_without(shots):
    device = ShotsDevice(Wiring(Noise()), shots)
    run = CircuitExecutor(device, Sign.input, 0, allocation=Allocation.effect).site("v", torch.ones(6))
    norms = torch.tensor([[0.0, 1e-6, 1, 1, 1, 1000]])
    shares = run.shares(norms)
    assert int(shares.sum()) == 5 * shots and shares[0, 0] == 0 and (8 * shares[0, 1:] >= shots).all()


def test_without_shots_there_is_nothing_to_share_out():
    errors = []
    for allocation in Allocation:
        device, estimate = NoisyDevice(Wiring(Noise(cz=2e-2)), None), EstimateConfig(Estimator.calibrated)
        executor = CircuitExecutor(device, Sign.two_settings, 0, estimate=estimate, allocation=allocation)
        executor.site("v", torch.arange(1.0, 7))(BLOCKS, SLICES)
        errors.append(executor.statistics.summary()["relative_error"])
    assert errors[0] == errors[1]


@pytest.mark.parametrize("sign", [Sign.input, Sign.two_settings])
def test_shots_by_effect_are_the_same_on_an_accelerator(sign):
    found = []
    for place in (None, "cpu"):
        device = NoisyDevice(Wiring(Noise(cz=1e-2)), 4096, np.float64, accelerator=place)
        estimate = EstimateConfig(Estimator.calibrated)
        executor = CircuitExecutor(device, sign, 0, estimate=estimate, allocation=Allocation.effect)
        found.append(executor.site("v")(BLOCKS, SLICES))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("estimator", "sign"), [
    (Estimator.sqrt, Sign.exact), (Estimator.calibrated, Sign.exact), (Estimator.calibrated, Sign.two_settings),
    (Estimator.sqrt, Sign.reference),
])  # fmt: skip
def test_error_bars_of_counting_are_what_estimates_scatter_by(estimator, sign):
    near = cayley(0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0)), 4)
    for allocation in Allocation:
        noise = Noise(block=0.2) if estimator is Estimator.calibrated else Noise()
        device = NoisyDevice(Wiring(noise, reference=sign is Sign.reference), 20_000)
        executor = CircuitExecutor(device, sign, 0, estimate=EstimateConfig(estimator), allocation=allocation)
        run = executor.site("v")
        for _ in range(8):
            run(near, SLICES)
        seen = executor.statistics.summary()
        assert seen["relative_error"] == pytest.approx(seen["counting_error"], rel=0.15)


@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_noise_aware_training_sees_what_the_papers_readout_gives_on_average(kept, tiny):
    selected = [site for site in sites(tiny.shape) if site.name.endswith("v_proj")][:1]
    config = AdapterConfig(dim=4)
    adapter = attach(tiny.model, selected, config)
    (module,) = adapter.modules.values()
    with torch.no_grad():
        module.trained.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    x = torch.randn(20, module.base.in_features, generator=torch.Generator().manual_seed(1))
    plain = module(x)
    with adapter.expecting(kept):
        expected = module(x)
        expected.sum().backward()
    assert module.trained.grad.abs().sum() > 0 and torch.equal(module(x), plain) and not torch.equal(expected, plain)
    adapter.set_executor(CircuitExecutor(NoisyDevice(Wiring(Noise(block=1 - kept)), None), Sign.input, 0))
    torch.testing.assert_close(module(x), expected.detach(), atol=1e-5, rtol=0)
    detach(tiny.model, adapter)
