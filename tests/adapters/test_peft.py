"""PEFT is the external oracle: its OFT with the exact Cayley map computes what our blocks do, it loads our folders as
they are, and what it saves runs here."""

import copy
import json

import peft
import pytest
import torch

from qrun.adapters.linear import AdaptedLinear, attach
from qrun.adapters.methods import names, spec
from qrun.adapters.saving import CONFIG, PEFT_CONFIG, WEIGHTS, read, save
from qrun.adapters.sites import select, sites
from qrun.config.compose import compose
from qrun.config.schema import AdapterConfig, Side
from qrun.errors import InputError
from qrun.recipes.measuring import attach_saved

IDS = torch.arange(60)[None]


@pytest.mark.parametrize("dim", [2, 4, 8, 16, 32])
def test_layer_output_and_gradient_agree_with_oft(dim):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(64, 24)

        def forward(self, x):
            return self.lin(x)

    torch.manual_seed(0)
    net = Net()
    ours = AdaptedLinear(torch.nn.Linear(64, 24), dim, Side.input, False)
    ours.base.load_state_dict(net.lin.state_dict())
    ours.trained.data.normal_(0, 0.5)
    theirs = peft.get_peft_model(
        net, peft.OFTConfig(oft_block_size=dim, r=0, use_cayley_neumann=False, target_modules=["lin"])
    )
    weight = next(p for n, p in theirs.named_parameters() if "oft_R" in n)
    assert weight.shape == ours.trained.shape
    weight.data = -ours.trained.data / 2
    x, upstream = torch.randn(40, 64), torch.randn(40, 24)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    a.backward(upstream)
    b.backward(upstream)
    torch.testing.assert_close(ours.trained.grad, -weight.grad / 2, atol=1e-4, rtol=1e-4)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def moved(adapter):
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.tensors().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter


@pytest.mark.parametrize("name", ["cayley", "oft", "lora", "hra", "road", "diagonal", "psoft"])
def test_peft_loads_the_folder_that_is_saved_and_we_read_the_same_bits(tiny, tmp_path, name):
    plain = copy.deepcopy(tiny.model)
    config = compose("train", [f"adapter={name}", "adapter.projections=[q_proj,down_proj]", "adapter.layers=last"])
    chosen = select(sites(tiny.shape), config.adapter.projections, config.adapter.layers)
    adapter = moved(spec(name).attach(tiny.model, chosen, config.adapter))
    save(tmp_path / "a", adapter, tiny.identity, {"gain": 1.0})
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "a")
    assert (logits(tiny.model) - logits(loaded.get_base_model())).abs().max() < 1e-5
    with loaded.disable_adapter():
        assert (logits(tiny.model) - logits(loaded)).abs().max() > 1e-3
    back = read(tmp_path / "a")
    assert back.config == config.adapter and back.facts == {"gain": 1.0} and not back.remark
    assert back.tensors.keys() == adapter.tensors().keys()
    assert all(torch.equal(back.tensors[key], value) for key, value in adapter.tensors().items())


@pytest.mark.parametrize("config", [AdapterConfig(side=Side.output), AdapterConfig(sign_constrained=True)])
def test_what_oft_cannot_express_stays_ours(tiny, tmp_path, config):
    save(tmp_path / "a", attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), config), tiny.identity, {})
    assert not (tmp_path / "a" / PEFT_CONFIG).exists() and read(tmp_path / "a").config == config
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config.json'"):
        peft.PeftModel.from_pretrained(tiny.model, tmp_path / "a")


def test_every_method_with_a_peft_layer_is_tried_above():
    theirs = {name for name in names() if type(spec(name)).peft_config is not type(spec("block")).peft_config}
    assert theirs == {"oft", "lora", "hra", "road", "diagonal", "psoft"}


def made_by_peft(tiny, folder, config):
    """Save an adapter with PEFT's own words; returns its logits."""
    model = peft.get_peft_model(copy.deepcopy(tiny.model), config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    model.eval()
    return logits(model)


def oft(**words):
    words = {"oft_block_size": 4, "r": 0, "use_cayley_neumann": False, "target_modules": ["v_proj", "up_proj"], **words}
    return peft.OFTConfig(task_type="CAUSAL_LM", **words)


def lora(**words):
    return peft.LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **words)


@pytest.mark.parametrize(
    ("config", "method", "size"),
    [
        (oft(), "cayley", 4),
        (oft(oft_block_size=0, r=8), "cayley", 4),  # blocks a site; all widths are 32 here
        (oft(block_share=True, module_dropout=0.3), "cayley", 4),
        (oft(oft_block_size=16, layers_to_transform=[1]), "cayley", 16),
        (lora(r=3, lora_alpha=16, lora_dropout=0.2), "lora", 3),
        (lora(r=4, lora_alpha=8, use_rslora=True, init_lora_weights="gaussian"), "lora", 4),
    ],
    ids=["oft", "oft-r", "oft-shared", "oft-b16", "lora", "rslora"],
)
def test_what_peft_saved_gives_its_logits_here(tiny, tmp_path, capsys, config, method, size):
    theirs = made_by_peft(tiny, tmp_path / "p", config)
    saved = read(tmp_path / "p")
    assert saved.config.method == method and size == (saved.config.dim if method == "cayley" else saved.config.rank)
    before = logits(tiny.model)
    attach_saved(tiny, saved, tmp_path / "p")
    ours = logits(tiny.model)
    assert (ours - theirs).abs().max() < 2e-6 * (1 + theirs.abs().max()) < 1e-4 < (ours - before).abs().max()
    assert "whether that is this model is not checked" in capsys.readouterr().out


def test_a_neumann_series_is_taken_as_the_exact_map_and_its_error_told(tiny, tmp_path):
    theirs = made_by_peft(tiny, tmp_path / "p", oft(use_cayley_neumann=True))
    saved = read(tmp_path / "p")
    told = float(saved.remark.rsplit(" ", 1)[1])
    before = logits(tiny.model)
    attach_saved(tiny, saved, tmp_path / "p")
    gap, turn = (logits(tiny.model) - theirs).abs().max(), (theirs - before).abs().max()
    assert 1e-6 < told < 1e-2 and gap < 0.01 * turn


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (oft(coft=True), "coft=True is not computed here; only coft=False is"),
        (oft(bias="oft_only"), "bias='oft_only' is not computed here"),
        (lora(use_dora=True), "use_dora=True is not"),
        (lora(rank_pattern={"q_proj": 2}), "rank_pattern={'q_proj': 2} is not"),
        (lora(modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\] is not"),
        (lora(init_lora_weights="pissa"), "init_lora_weights='pissa' is not"),
        (
            peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
            "peft_type=IA3: of PEFT's adapters OFT and",
        ),
        (oft(oft_block_size=0, r=8, target_modules=["q_proj", "down_proj"]), "one size for all is read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_computed_here_is_refused_by_its_field(tiny, tmp_path, config, said):
    made_by_peft(tiny, tmp_path / "p", config)
    with pytest.raises(InputError, match=said) as stop:
        read(tmp_path / "p")
    assert "\n" not in str(stop.value) and str(tmp_path / "p") in str(stop.value)


def test_an_adapter_of_a_wider_model_is_refused_and_leaves_the_model_alone(tiny, nano, tmp_path):
    made_by_peft(nano, tmp_path / "p", oft(layers_to_transform=[0]))
    before = logits(tiny.model)
    with pytest.raises(InputError, match=r"layers.0.mlp.up_proj: tensor of shape \[48, 6\]"):
        attach_saved(tiny, read(tmp_path / "p"), tmp_path / "p")
    assert torch.equal(logits(tiny.model), before)


def test_a_folder_of_format_2_is_read_and_export_makes_it_one_of_peft(qrun, tiny, tiny_folder, tmp_path):
    adapter = moved(attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), AdapterConfig(dim=4)))
    save(tmp_path / "a", adapter, tiny.identity, {"gain": 1.0})
    values = json.loads((tmp_path / "a" / CONFIG).read_text())
    (tmp_path / "a" / CONFIG).unlink()
    (tmp_path / "a" / PEFT_CONFIG).write_text(json.dumps({**values, "format_version": 2}))
    from safetensors.torch import save_file

    save_file(adapter.snapshot(), tmp_path / "a" / WEIGHTS)
    back = read(tmp_path / "a")
    assert all(torch.equal(back.tensors[key], value) for key, value in adapter.tensors().items())
    model = ["model=local", f"model.path={tiny_folder}", "model.device=cpu"]
    code, _, err = qrun("export", tmp_path / "a", "--to", "peft", "--out", tmp_path / "b", *model)
    assert code == 0, err
    plain = copy.deepcopy(tiny.model)
    for name, base in adapter.bases().items():
        path, _, child = f"model.{name}".rpartition(".")
        setattr(plain.get_submodule(path), child, base)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "b")
    torch.testing.assert_close(logits(loaded), logits(tiny.model), atol=1e-5, rtol=1e-5)
    assert read(tmp_path / "b").facts == {"gain": 1.0}
    assert json.loads((tmp_path / "b" / PEFT_CONFIG).read_text())["base_model_name_or_path"] == str(tiny_folder)


def test_an_adapter_of_peft_runs_on_a_device(qrun, tiny, tiny_folder, story_file, tmp_path):
    made_by_peft(tiny, tmp_path / "p", oft(block_share=True))
    words = ["model=local", f"model.path={tiny_folder}", "model.device=cpu", "data=text", f"data.path={story_file}"]
    words += [
        "protocol.ctx=64",
        "evaluation.max_tokens=300",
        f"results={tmp_path / 'r'}",
        f"adapter.path={tmp_path / 'p'}",
    ]
    code, out, err = qrun("eval", "perplexity", *words, "device=shots", "device.shots=null", "signs=exact", "name=a")
    assert code == 0, err
    code, out, err = qrun("eval", "compare", "a:adapted", "a", "--results", tmp_path / "r")
    assert code == 0 and abs(float(out.split("difference")[1].split()[0])) < 1e-3, err


def test_an_exported_model_has_the_blocks_of_an_adapter_of_peft_in_its_weights(qrun, tiny, tiny_folder, tmp_path):
    theirs = made_by_peft(tiny, tmp_path / "p", oft())
    words = ["model=local", f"model.path={tiny_folder}", "model.device=cpu"]
    code, _, err = qrun("export", tmp_path / "p", "--to", "merged", "--out", tmp_path / "m", *words)
    assert code == 0, err
    from qrun.config.schema import ModelConfig
    from qrun.language.models import load

    merged = load(ModelConfig(name="merged", path=str(tmp_path / "m"))).model
    torch.testing.assert_close(logits(merged), theirs, atol=1e-5, rtol=1e-5)
