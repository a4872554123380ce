"""Truncated products: exact at full rank, optimal below it, and a model folder that every command takes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qrun.adapters.methods import spec
from qrun.adapters.sites import sites
from qrun.compression.compress import allocate, compress, input_covariances, nats, save, sensitivity
from qrun.compression.factors import contract, factorise, read_factors
from qrun.compression.forms import Form, balanced
from qrun.config.schema import AdapterConfig, CompressionConfig, CompressionKind, ModelConfig, Profile
from qrun.errors import InputError
from qrun.language.models import load

SVD, MPO2, MPO3 = Form(CompressionKind.svd), Form(CompressionKind.mpo, 2), Form(CompressionKind.mpo, 3)
IDS = torch.arange(320).view(5, 64)


@given(st.integers(2, 600), st.integers(2, 5))
def test_balanced_factors_multiply_to_the_size(size, parts):
    assert int(np.prod(balanced(size, parts))) == size


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(12, 8), (18, 12), (16, 48)]),
    st.sampled_from([SVD, MPO2, MPO3]),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_cores_have_the_stated_parameters_and_the_error_falls_with_the_bond(shape, form, bond, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cores = factorise(weight, form, bond)
    assert sum(c.numel() for c in cores) == form.count(*shape, bond)
    error = (contract(cores) - weight).norm()
    assert error <= (contract(factorise(weight, form, max(1, bond - 1))) - weight).norm() + 1e-9
    full = factorise(weight, form, max(form.full(*shape)))
    torch.testing.assert_close(contract(full), weight, atol=1e-10, rtol=1e-10)


def test_truncated_svd_is_the_best_of_its_rank_and_whitening_the_best_for_its_inputs():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    singular = torch.linalg.svdvals(weight)
    assert float((contract(factorise(weight, SVD, 5)) - weight).norm()) == pytest.approx(
        float(singular[5:].norm()), rel=1e-9
    )
    inputs = torch.randn(500, 16, generator=generator, dtype=torch.float64) * torch.logspace(
        0, -2, 16, dtype=torch.float64
    )
    aware = contract(factorise(weight, SVD, 5, inputs.T @ inputs / 500))
    plain = contract(factorise(weight, SVD, 5))
    outputs = torch.linalg.svdvals(inputs @ weight.T)
    assert float((inputs @ (aware - weight).T).norm()) == pytest.approx(float(outputs[5:].norm()), rel=1e-3)
    assert (inputs @ (aware - weight).T).norm() < 0.9 * (inputs @ (plain - weight).T).norm()


@pytest.mark.parametrize("form", [SVD, MPO2, MPO3], ids=["svd", "mpo2", "mpo3"])
def test_the_bond_of_a_ratio_is_the_largest_that_keeps_it(form):
    for ratio in (0.2, 0.5, 0.8):
        bond = form.bond_for(192, 512, ratio)
        assert form.count(192, 512, bond) <= ratio * 192 * 512 < form.count(192, 512, bond + 1)


def test_impossible_bonds_and_ratios_are_named():
    with pytest.raises(InputError, match="above the full rank 192 of here"):
        SVD.check_bond(192, 512, 193, "here")
    with pytest.raises(InputError, match=r"cannot be reached; a 192 x 512 weight has at least 0\.007"):
        SVD.bond_for(192, 512, 0.005)
    with pytest.raises(InputError, match="svd has two factors"):
        CompressionConfig(cores=3)
    with pytest.raises(InputError, match="activation-aware"):
        CompressionConfig(kind=CompressionKind.mpo, activation_aware=True)


@pytest.mark.parametrize(
    "config",
    [
        CompressionConfig(ratio=0.7),
        CompressionConfig(kind=CompressionKind.mpo, cores=3, ratio=0.6),
        CompressionConfig(ratio=0.7, activation_aware=True),
    ],
    ids=["svd", "mpo3", "asvd"],
)
def test_a_compressed_folder_is_an_ordinary_model_and_healing_starts_where_it_is(tiny, tmp_path, config):
    compressed = compress(tiny, config, IDS)
    facts = compressed.statement
    assert 0.5 * config.ratio < facts["kept_ratio"] <= config.ratio
    assert facts["model_kept_bytes"] == 4 * facts["model_kept_parameters"] < facts["model_bytes"]
    save(tmp_path / "small", tiny, compressed)
    back = load(ModelConfig(name="small", path=str(tmp_path / "small")))
    with torch.no_grad():
        logits = back.model(input_ids=IDS[:1]).logits
        torch.testing.assert_close(logits, tiny.model(input_ids=IDS[:1]).logits)
        cores = read_factors(tmp_path / "small")
        assert sum(c.numel() for found in cores.values() for c in found) == facts["kept_parameters"]
        adapter = spec("healing").attach(
            back.model, sites(back.shape), AdapterConfig(method="healing"), tmp_path / "small"
        )
        assert adapter.count() == facts["kept_parameters"]
        torch.testing.assert_close(back.model(input_ids=IDS[:1]).logits, logits, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "small" / "compression.json").read_text())["bonds"] == compressed.bonds


@pytest.mark.slow
def test_the_profile_measures_each_site_alone_and_spends_the_budget_where_it_hurts(tiny):
    before = {name: p.clone() for name, p in tiny.model.named_parameters()}
    everything, form = sites(tiny.shape), SVD
    layers = {site.name: tiny.model.get_submodule(f"model.{site.name}") for site in everything}
    profile = sensitivity(
        tiny.model,
        everything,
        0.6,
        form,
        lambda site, bond: factorise(layers[site.name].weight.data, form, bond),
        IDS,
        lambda _: None,
    )
    assert all(torch.equal(p, before[name]) for name, p in tiny.model.named_parameters())
    assert set(profile) == set(layers) and all(
        len(row) == 4 and len(set(row.values())) == 4 for row in profile.values()
    )
    layer, (level, rise) = layers["layers.1.mlp.down_proj"], list(profile["layers.1.mlp.down_proj"].items())[2]
    dense = layer.weight.data
    layer.weight.data = contract(factorise(dense, form, form.bond_for(32, 48, float(level))))
    truncated = nats(tiny.model, IDS)
    layer.weight.data = dense
    assert rise == pytest.approx(truncated - nats(tiny.model, IDS), abs=1e-5)
    forged = {name: dict.fromkeys(row, 0.0) for name, row in profile.items()}
    forged["layers.1.mlp.down_proj"] = {"0.3": 4.0, "0.45": 3.0, "0.6": 2.0, "0.75": 1.0}
    ratios = allocate(everything, 0.6, form, forged)
    assert ratios["layers.1.mlp.down_proj"] == 1.0 and ratios["layers.0.mlp.down_proj"] == 0.3
    compressed = compress(tiny, CompressionConfig(ratio=0.6, profile=Profile.sensitivity), IDS)
    assert compressed.statement["kept_ratio"] <= 0.6


@pytest.mark.slow
def test_healing_moves_the_factored_sites_and_leaves_those_that_a_profile_left_dense(tiny, tmp_path):
    compressed = compress(tiny, CompressionConfig(ratio=0.85, profile=Profile.sensitivity), IDS)
    assert 0 < len(compressed.cores) < len(sites(tiny.shape))
    save(tmp_path / "small", tiny, compressed)
    adapter = spec("healing").attach(tiny.model, sites(tiny.shape), AdapterConfig(method="healing"), tmp_path / "small")
    assert set(adapter.modules) == set(compressed.cores) and adapter.count() == sum(
        c.numel() for cores in compressed.cores.values() for c in cores
    )


def test_covariances_are_those_of_the_inputs(tiny):
    layer = tiny.model.get_submodule("model.layers.0.self_attn.q_proj")
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1).double()))
    found = input_covariances(tiny.model, {"q": layer}, IDS)["q"]
    handle.remove()
    x = torch.cat(seen)
    torch.testing.assert_close(found, x.T @ x / 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.update({"layers.0.mlp.up_proj.x": torch.ones(1)}), "is no core of a projection"),
        (lambda f: f.pop("layers.0.mlp.up_proj.0"), "the cores of layers.0.mlp.up_proj make no product"),
        (lambda f: f.update({"layers.0.mlp.up_proj.1": torch.ones(3, 1, 32, 1)}), "layers.0.mlp.up_proj make no"),
        (lambda f: f.update({"layers.0.mlp.up_proj.0": torch.ones(32)}), "layers.0.mlp.up_proj make no product"),
        (lambda f: f.update({k: v * float("inf") for k, v in f.items()}), "has values that are not finite"),
        (lambda f: f.update({k: v.int() for k, v in f.items()}), "is of type I32"),
        (
            lambda f: f.update({k: v.repeat(1, 1, 2, 1) for k, v in f.items()}),
            "cores of a weight 48 x 128, but",
        ),
    ],
)
def test_broken_factors_are_refused_in_one_line(tiny, tmp_path, change, said):
    first = torch.arange(48.0).view(1, 48, 1, 1)
    factors = {"layers.0.mlp.up_proj.0": first, "layers.0.mlp.up_proj.1": torch.ones(1, 1, 32, 1)}
    save_file(factors, tmp_path / "factors.safetensors")
    assert set(read_factors(tmp_path)) == {"layers.0.mlp.up_proj"}
    change(factors)
    save_file(factors, tmp_path / "factors.safetensors")
    with pytest.raises(InputError, match=said) as stop:
        spec("healing").attach(tiny.model, sites(tiny.shape), AdapterConfig(method="healing"), tmp_path)
    assert str(stop.value).isprintable()
