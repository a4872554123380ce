"""Every method starts as the identity, trains only itself, comes back from its folder, leaves the model as it was."""

import dataclasses
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

from qrun.adapters import methods
from qrun.adapters.cayley import cayley, rotate
from qrun.adapters.layers import ButterflyLinear
from qrun.adapters.linear import detach
from qrun.adapters.methods import names, spec
from qrun.adapters.saving import read, save
from qrun.adapters.sites import adapted, parameters, select, sites
from qrun.config.compose import compose
from qrun.config.schema import AdapterConfig, Side
from qrun.errors import InputError

IDS = torch.arange(40).view(2, 20)
every_method = pytest.mark.parametrize("name", [name for name in names() if name != "healing"])


def config_of(name):
    return compose("train", [f"adapter={name}"]).adapter


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.slow
@every_method
def test_a_method_starts_as_the_identity_trains_is_saved_and_comes_off_again(tiny, name, tmp_path):
    chosen, config, before = sites(tiny.shape), config_of(name), logits(tiny.model)
    adapter = spec(name).attach(tiny.model, chosen, config)
    trained = {n for n, p in tiny.model.named_parameters() if p.requires_grad}
    assert len(trained) == len(adapter.tensors())
    assert adapter.count() == spec(name).count(config, chosen)
    torch.testing.assert_close(logits(tiny.model), before, atol=1e-5, rtol=1e-5)
    optimizer = torch.optim.AdamW(adapter.tensors().values(), lr=0.02, weight_decay=0.0)
    for _ in range(2):  # LoRA's second factor moves from the second step on
        tiny.model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.tensors().values())
    moved = logits(tiny.model)
    assert (moved - before).abs().max() > 1e-3
    with adapter.disabled():
        assert torch.equal(logits(tiny.model), before)
    assert torch.equal(logits(tiny.model), moved)
    save(tmp_path / "a", adapter, tiny.identity, {})
    detach(tiny.model, adapter)
    assert torch.equal(logits(tiny.model), before)
    back = read(tmp_path / "a")
    assert back.config == config
    again = spec(name).attach(tiny.model, [s for s in chosen if s.name in back.sites], back.config)
    again.load(back.tensors)
    assert torch.equal(logits(tiny.model), moved)


@pytest.mark.slow
@every_method
def test_parameters_are_float32_beside_bfloat16_weights(tiny, name):
    tiny.model.to(torch.bfloat16)
    before = logits(tiny.model)
    adapter = spec(name).attach(tiny.model, sites(tiny.shape), config_of(name))
    out = tiny.model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    torch.testing.assert_close(out.logits, before, atol=0.02, rtol=0.02)
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in adapter.tensors().values())


@every_method
def test_every_method_has_a_config_file_of_its_name_and_a_label_that_starts_with_it(name):
    config = compose("train", [f"adapter={name}"]).adapter
    assert config.method == name
    assert spec(name).label(config).startswith("b4" if name == "cayley" else name)


def test_listing_counting_and_labelling_load_neither_torch_nor_peft():
    code = (
        "import sys; from qrun.adapters.methods import names, spec; from qrun.adapters.sites import Site\n"
        "from qrun.config.schema import AdapterConfig\n"
        "site = Site(0, 'q_proj', 64, 64)\n"
        "for n in names(): c = AdapterConfig(method=n, rank=2); spec(n).check(c, [site]); spec(n).count(c, [site])\n"
        "print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.slow
def test_labels_and_counts_are_those_of_earlier_runs(tiny):
    chosen = sites(tiny.shape)
    width, out = sum(s.in_features for s in chosen), sum(s.out_features for s in chosen)
    assert (width, out) == (480, 448)
    known = {
        "cayley": ("b4", 720), "oft": ("oft-b4", 720), "boft": ("boft-b2m3", 720), "lora": ("lora-r4", 3712),
        "diagonal": ("diagonal", 480), "block": ("block-b4", 1920), "dense": ("dense", 16_896),
        "healing": ("healing", None),
    }  # fmt: skip
    assert {n: (spec(n).label(config_of(n)), spec(n).count(config_of(n), chosen)) for n in known} == known
    assert spec("cayley").label(AdapterConfig(dim=8, sign_constrained=True)) == "b8-signed"


@pytest.mark.parametrize(("lr", "dim", "exponent"), list(product([0.006, 0.0107], [2, 3, 16], [0.0, 0.5, 1.0])))
def test_steps_shrink_with_the_block_and_with_the_rank_and_ofts_are_half_as_long(lr, dim, exponent):
    scaled = lr * (4 / dim) ** exponent
    steps = {n: spec(n).steps(lr, 1.5, AdapterConfig(method=n, dim=dim, rank=7), exponent) for n in names()}
    assert steps["cayley"] == steps["boft"] == steps["block"] == (scaled, 1.5)
    assert steps["oft"] == (scaled / 2, 3.0)
    assert steps["lora"] == (lr / 7**0.5, 1.5)
    assert steps["diagonal"] == steps["dense"] == steps["healing"] == (lr, 1.5)


def test_a_control_takes_the_studys_rate_then_its_own_then_the_adapters():
    from qrun.studies import configure
    from qrun.studies.grid import training

    config = configure("controls", ["study.control_lr.lora=0.5", "training.lr=0.25"])
    rates = {n: training(config, config_of(n)).lr for n in ("lora", "dense", "oft", "healing", "cayley")}
    assert rates == {"lora": 0.5 / 4**0.5, "dense": 0.001, "oft": 0.125, "healing": 0.0005, "cayley": 0.25}
    for word in ("lora=0", "nothing=1"):
        with pytest.raises(InputError, match=f"study.control_lr.{word}.0: give a method's learning rate above 0"):
            configure("controls", [f"study.control_lr.{word}"])


def test_butterfly_factors_mix_two_to_the_m_minus_one_blocks_and_stay_orthogonal():
    torch.manual_seed(0)
    layer = ButterflyLinear(torch.nn.Linear(24, 5), 2, 3)
    layer.skew.data.normal_(0, 1.0)
    matrix = layer.transform(torch.eye(24)).detach().double().numpy()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(24), atol=1e-6)
    reach = (np.abs(matrix) > 1e-7).sum(1)
    assert (reach == 8).all()  # 2^(3-1) chunks of b = 2 channels
    assert (np.abs(matrix[:8, 8:]) < 1e-7).all()


def test_one_butterfly_factor_is_the_cayley_adapter():
    layer = ButterflyLinear(torch.nn.Linear(16, 5), 4, 1)
    layer.skew.data.normal_(0, 1.0)
    x = torch.randn(7, 16)
    torch.testing.assert_close(layer.transform(x), rotate(x, cayley(layer.skew[0], 4)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dim", [2, 4, 8, 16, 32, 64])
def test_a_matched_lora_has_the_nearest_rank_and_never_zero(nano, dim):
    chosen = sites(nano.shape)
    budget, per_rank = parameters(chosen, dim, Side.input), 20_352
    found = spec("lora").matched(AdapterConfig(dim=dim), chosen, budget)
    count = spec("lora").count(found, chosen)
    assert found.method == "lora" and count == found.rank * per_rank
    assert found.rank == 1 or abs(count - budget) <= per_rank / 2
    assert dim != 4 or budget == 14_976


def test_a_lora_matched_to_a_number_of_sites_is_at_those_sites(nano):
    own = AdapterConfig(dim=4, count=20)
    chosen = adapted(nano.shape, own)
    found = spec("lora").matched(own, chosen, parameters(chosen, 4, Side.input))
    assert (found.projections, found.count) == (own.projections, 20) and adapted(nano.shape, found) == chosen


def test_a_matched_boft_has_half_blocks_and_others_change_their_name_only(nano):
    chosen = sites(nano.shape)
    found = {dim: spec("boft").matched(AdapterConfig(dim=dim), chosen, 1) for dim in (2, 4, 8, 16)}
    assert {d: (c.dim, c.factors) for d, c in found.items()} == {2: (2, 2), 4: (2, 3), 8: (4, 2), 16: (8, 2)}
    own = AdapterConfig(dim=8, projections="mlp", layers="last")
    assert spec("dense").matched(own, chosen, 1) == dataclasses.replace(own, method="dense", dim=4)  # it has no b


def test_sizes_that_do_not_fit_are_refused_before_anything_is_loaded(tiny):
    with pytest.raises(InputError, match="multiple of 32"):
        spec("boft").attach(tiny.model, sites(tiny.shape), AdapterConfig(method="boft", dim=4, factors=4))
    for name in ("cayley", "oft", "boft", "block"):
        with pytest.raises(InputError, match=r"adapter\.dim=5: does not divide"):
            spec(name).check(AdapterConfig(method=name, dim=5), sites(tiny.shape))
    for name in ("lora", "diagonal", "dense", "healing"):
        spec(name).check(AdapterConfig(method=name, dim=5), sites(tiny.shape))


def test_only_cayley_blocks_have_a_side_a_sign_rule_and_circuits(tiny):
    with pytest.raises(InputError, match=r"adapter\.side=output: only methods cayley and circuit"):
        AdapterConfig(method="lora", side=Side.output)
    with pytest.raises(InputError, match=r"adapter\.sign_constrained=true: only methods cayley and circuit"):
        AdapterConfig(method="oft", sign_constrained=True)
    adapter = spec("lora").attach(
        tiny.model, select(sites(tiny.shape), ["v_proj"], ["0"]), AdapterConfig(method="lora")
    )
    with pytest.raises(InputError, match="its matrices are no circuits"):
        adapter.set_executor(object())


def test_healing_needs_a_compressed_model(tiny):
    with pytest.raises(InputError, match="not factored"):
        spec("healing").attach(tiny.model, sites(tiny.shape), AdapterConfig(method="healing"), tiny.identity["path"])


def test_unknown_methods_and_options_are_refused_with_what_is_possible():
    with pytest.raises(InputError, match=r"adapter\.method=lorra: use block, boft, cayley, .*oft"):
        compose("train", ["adapter.method=lorra"])
    with pytest.raises(InputError, match=r"adapter\.options\.alpha=2: possible words: method lora has none"):
        compose("train", ["adapter=lora", "adapter.options.alpha=2"])


MADE_UP = """
from qrun.adapters.methods.lora import Lora
class Mine(Lora):
    options = {"alpha": 3, "variant": "a"}
METHOD = Mine()
"""


def test_a_new_method_is_one_file_and_its_options_are_checked_saved_and_read_back(tiny, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MADE_UP)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "mine" in names() and spec("mine").name == "mine"
    config = compose("train", ["adapter.method=mine", "adapter.options.alpha=7"]).adapter
    assert config.options == {"alpha": 7, "variant": "a"}
    for word, text in (("beta=1", "beta=1: possible words: alpha, variant"), ("alpha=x", "alpha='x': give a int")):
        with pytest.raises(InputError, match=text):
            compose("train", ["adapter.method=mine", f"adapter.options.{word}"])
    adapter = spec("mine").attach(tiny.model, sites(tiny.shape)[:2], config)
    save(tmp_path / "saved", adapter, tiny.identity, {})
    assert read(tmp_path / "saved").config == config
    assert spec("lora").matched(config, sites(tiny.shape), 1).options == {}
    assert spec("mine").matched(config, sites(tiny.shape), 1).options == config.options
