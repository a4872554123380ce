"""Blocks parameterised as circuits: orthogonal, the identity at the start, those of the synthesis's own product."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrun.adapters.circuit import CircuitForm, circuit_blocks, identity_angles, palindrome, wires
from qrun.adapters.diagnostics import angles as cayley_angles
from qrun.adapters.diagnostics import describe, turns
from qrun.adapters.executor import CircuitExecutor
from qrun.adapters.forms import CayleyForm
from qrun.adapters.linear import AdaptedLinear
from qrun.adapters.methods import spec
from qrun.adapters.saving import PEFT_CONFIG, read, save
from qrun.adapters.sites import select, sites
from qrun.config.compose import compose
from qrun.config.devices import EstimateConfig, Sign
from qrun.config.schema import AdapterConfig, Side
from qrun.errors import InputError
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.noise import Noise
from qrun.quantum.synthesis import unitary
from qrun.quantum.wiring import Wiring

SHAPES = [(1, 0), (2, 2), (2, 4), (3, 2), (3, 6), (3, 14), (4, 6), (4, 10), (6, 10)]


def random_angles(shape, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return 6 * torch.rand(count, shape.qubits + 2 * len(shape.pairs), generator=generator, dtype=torch.float64) - 3


def rank(angles, shape):
    """Directions that the angles turn one block in."""
    slopes = torch.autograd.functional.jacobian(lambda a: circuit_blocks(a[None], shape).flatten(), angles.double())
    return int(torch.linalg.matrix_rank(slopes, rtol=1e-9))


@settings(deadline=None, max_examples=40)
@given(shape=st.sampled_from([(1, 0), (2, 4), (3, 6), (4, 10)]), seed=st.integers(0, 10_000))
def test_blocks_are_special_orthogonal_for_any_angles(shape, seed):
    own = palindrome(*shape)
    q = circuit_blocks(random_angles(own, 5, seed).float(), own)
    assert q.dtype == torch.float32 and q.shape == (5, 2 ** shape[0], 2 ** shape[0])
    assert (q.transpose(1, 2) @ q - torch.eye(2 ** shape[0])).abs().max() <= 1e-6
    determinants = torch.linalg.det(q.double())
    torch.testing.assert_close(determinants, torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_the_products_of_the_synthesis(shape):
    own = palindrome(*shape)
    angles = random_angles(own, 7, 3)
    np.testing.assert_allclose(circuit_blocks(angles, own).numpy(), unitary(angles.numpy(), own), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 2), (3, 6), (4, 6)])
def test_gradients_are_those_of_finite_differences(shape):
    own = palindrome(*shape)
    weights = torch.randn(3, 2 ** shape[0], 2 ** shape[0], dtype=torch.float64)
    angles = random_angles(own, 3, 1).requires_grad_()
    (slope,) = torch.autograd.grad((circuit_blocks(angles, own) * weights).sum(), angles)
    for i in range(angles.shape[1]):
        ends = []
        for step in (1e-6, -1e-6):
            moved = angles.detach().clone()
            moved[:, i] += step
            ends.append((circuit_blocks(moved, own) * weights).sum((1, 2)))
        torch.testing.assert_close(slope[:, i], (ends[0] - ends[1]) / 2e-6, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_start_is_the_identity_by_a_palindrome_of_generic_angles(shape):
    own = palindrome(*shape)
    assert own.pairs == own.pairs[::-1] and len(own.pairs) == shape[1]
    angles = identity_angles(50, own, torch.Generator().manual_seed(0))
    eye = torch.eye(2 ** shape[0]).expand(50, -1, -1)
    torch.testing.assert_close(circuit_blocks(angles, own), eye, atol=1e-6, rtol=0)
    middles = [wire[len(wire) // 2] for wire in wires(own)]
    assert sorted(i for wire in wires(own) for i in wire) == list(range(angles.shape[1]))
    assert (angles[:, middles] == 0).all() and ((angles == 0).sum(1) == shape[0]).all()


@pytest.mark.parametrize(("shape", "zero", "start"), [
    ((2, 2), 4, 4), ((2, 4), 4, 6), ((3, 2), 5, 5), ((3, 4), 7, 7), ((3, 6), 8, 9), ((3, 10), 8, 13),
    ((3, 14), 8, 17), ((4, 10), 12, 14), pytest.param((6, 10), 16, 16, marks=pytest.mark.long),
])  # fmt: skip
def test_the_start_turns_blocks_in_n_plus_k_directions_and_moves_into_all(shape, zero, start):
    own = palindrome(*shape)
    angles = identity_angles(1, own, torch.Generator().manual_seed(0))[0]
    assert rank(torch.zeros_like(angles), own) == zero
    assert rank(angles, own) == start == min(shape[0] + shape[1], 2 ** (shape[0] - 1) * (2 ** shape[0] - 1))
    moved = angles.double() + 0.3 * random_angles(own, 1, 0)[0]
    assert rank(moved, own) == min(shape[0] + 2 * shape[1], 2 ** (shape[0] - 1) * (2 ** shape[0] - 1))


def test_a_site_starts_the_same_everywhere_and_unlike_other_sites():
    torch.manual_seed(0)
    first = CircuitForm(6, "layers.0.self_attn.q_proj").start(4, 8)
    torch.manual_seed(1)
    assert torch.equal(CircuitForm(6, "layers.0.self_attn.q_proj").start(4, 8), first)
    assert not torch.equal(CircuitForm(6, "layers.1.self_attn.q_proj").start(4, 8), first)
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("side", list(Side))
def test_a_layer_of_circuits_multiplies_by_them_merges_and_says_how_they_are_written(side):
    module = AdaptedLinear(torch.nn.Linear(32, 16), 8, side, False, CircuitForm(4, "here"))
    module.trained.data += 0.3 * torch.randn(module.trained.shape)
    angles, shape = module.written()
    assert angles.dtype == np.float64 and shape == palindrome(3, 4)
    dense = torch.block_diag(*torch.from_numpy(unitary(angles, shape)).float())
    for tokens in (3, 50):
        x = torch.randn(tokens, 32)
        expected = module.base(x @ dense.T) if side is Side.input else module.base(x) @ dense.T
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    module.merge()
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    assert AdaptedLinear(torch.nn.Linear(32, 16), 8, side, False).written() is None


def attached(tiny, *words):
    config = compose("train", ["adapter=circuit", "adapter.projections=[v_proj,up_proj]", *words]).adapter
    chosen = select(sites(tiny.shape), config.projections, config.layers)
    adapter = spec("circuit").attach(tiny.model, chosen, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.tensors().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter, chosen


def logits(tiny):
    with torch.no_grad():
        return tiny.model(input_ids=torch.arange(12).view(1, 12)).logits


@pytest.mark.parametrize("dim", [2, 4, 8])
def test_a_noisy_device_without_noise_gives_the_exact_product(tiny, dim):
    adapter, _ = attached(tiny, f"adapter.dim={dim}", "adapter.layers=first")
    exact = logits(tiny)
    device = NoisyDevice(Wiring(Noise()), None, np.float64)
    adapter.set_executor(CircuitExecutor(device, Sign.exact, 0, False, EstimateConfig()))
    torch.testing.assert_close(logits(tiny), exact, atol=1e-5, rtol=1e-5)


def test_a_saved_circuit_comes_back_with_its_number_of_cz_and_is_no_adapter_of_peft(tiny, tmp_path):
    adapter, chosen = attached(tiny, "adapter.options.czs=4", "adapter.side=output")
    widths = sum(site.out_features for site in chosen)
    assert adapter.count() == (3 + 2 * 4) * widths // 8
    save(tmp_path / "a", adapter, tiny.identity, {})
    back = read(tmp_path / "a")
    assert back.config == adapter.config and back.config.options == {"czs": 4}
    assert all(torch.equal(back.tensors[name], own) for name, own in adapter.tensors().items())
    assert not (tmp_path / "a" / PEFT_CONFIG).exists()


def test_a_saved_block_is_looked_at_and_a_method_without_blocks_is_refused(qrun, tiny, tmp_path):
    save(tmp_path / "a", attached(tiny, "adapter.dim=4", "adapter.options.czs=4")[0], tiny.identity, {})
    code, out, err = qrun("circuit", f"adapter.path={tmp_path / 'a'}", "block=1")
    assert code == 0 and "block 1, b = 4: 2 qubits, 5 CZ" in out, err
    config = AdapterConfig(method="diagonal")
    other = spec("diagonal").attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["all"]), config)
    save(tmp_path / "b", other, tiny.identity, {})
    code, _, err = qrun("circuit", f"adapter.path={tmp_path / 'b'}")
    assert code == 2 and "method diagonal has no blocks that are circuits" in err and err.count("\n") == 1


def test_blocks_are_described_whatever_their_form(tiny):
    found = describe(attached(tiny)[0])
    assert 0 < found["rotation_degrees"] < found["rotation_degrees_largest"] < 180 and "norm_k" not in found
    assert 0 < found["entropy_ratio"] < 1
    parameters = torch.randn(5, 28, generator=torch.Generator().manual_seed(0))
    of_blocks = turns(CayleyForm().blocks(parameters.double(), 8)).sort(1).values
    torch.testing.assert_close(of_blocks, cayley_angles(parameters, 8).sort(1).values)


@pytest.mark.parametrize(("words", "message"), [
    ({"options": {"czs": 5}}, r"adapter\.options\.czs=5: .*an even number from 2"),
    ({"options": {"czs": 0}}, r"adapter\.options\.czs=0: .*an even number from 2"),
    ({"dim": 6}, r"adapter\.dim=6: "),
])  # fmt: skip
def test_circuits_that_cannot_start_as_the_identity_are_refused(tiny, words, message):
    config = AdapterConfig(method="circuit", **{"dim": 8, **words})
    with pytest.raises(InputError, match=message):
        spec("circuit").check(config, select(sites(tiny.shape), ["q_proj"], ["all"]))


@pytest.mark.parametrize(("dim", "czs"), [(2, 2), (4, 2), (8, 12), (16, 58)])
def test_a_circuit_as_a_control_has_about_the_parameters_of_the_cayley_block(tiny, dim, czs):
    chosen, own = select(sites(tiny.shape), ["q_proj"], ["all"]), AdapterConfig(dim=dim)
    budget = spec("cayley").count(own, chosen)
    found = spec("circuit").matched(own, chosen, budget)
    assert found.options == {"czs": czs} and found.dim == dim
    assert abs(spec("circuit").count(found, chosen) / budget - 1) < 0.05
    kept = AdapterConfig(method="circuit", dim=dim, options={"czs": 4})
    assert spec("circuit").matched(kept, chosen, budget) == kept
