"""Measurements of what is opened."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from qrun.adapters.linear import AdaptedLinear, attach, detach
from qrun.adapters.saving import read, save
from qrun.adapters.sites import select, sites
from qrun.cells.cell import Place
from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError, RunFailed
from qrun.recipes.cell_runs import ask_cell
from qrun.recipes.measuring import attach_saved, measured
from qrun.studies import configure, module


def test_what_is_not_finite_is_named(tiny_folder, story_file):
    words = ["model=local", f"model.path={tiny_folder}", "data=text", f"data.path={story_file}", "protocol.ctx=64"]
    config = compose("perplexity", [*words, "evaluation.max_tokens=200"])
    opened = Workspace().open(config)
    opened.language.model = copy.deepcopy(opened.language.model)
    with torch.no_grad():
        opened.language.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RunFailed, match=r"^with adapter: the model's log-likelihoods are not finite"):
        measured("with adapter", opened, config, None)


def test_an_adapter_of_layers_that_the_model_has_not_is_one_line(tiny, tmp_path):
    import peft

    model = copy.deepcopy(tiny.model)
    last = len(model.model.layers) - 1
    lora = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=["q_proj"], layers_to_transform=[last]))
    lora.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {key.replace(f"layers.{last}.", "layers.29."): value for key, value in load_file(path).items()}
    save_file(tensors, path)
    saved = read(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path}: adapts layers.29.self_attn.q_proj, which model=tiny"):
        attach_saved(tiny, saved, tmp_path)
    assert not any("lora" in name for name, _ in tiny.model.named_parameters())


def test_an_arm_that_no_circuit_can_run_leaves_the_model_as_it_was(tiny, tmp_path):
    """The arms after it, in the same process, are asked of the frozen model again."""
    folder, workspace = tmp_path / "adapter", Workspace()
    adapter = attach(
        tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), AdapterConfig(dim=4, sign_constrained=True)
    )
    save(folder, adapter, tiny.identity, {})
    detach(tiny.model, adapter)
    words = ["model=local", f"model.path={tiny.identity['path']}", f"adapter.path={folder}", "device=noisy",
             "signs=two_settings", "estimate=calibrated"]  # fmt: skip
    arms = module("questions").cells(configure("questions", [*words, "questions.limit=1"]), lambda told: None)
    (task,) = (cell.task for cell in arms if cell.axes["arm"] == "adapter on noisy")
    with pytest.raises(InputError, match="signs=two_settings: a sign-constrained"):
        ask_cell(task, workspace, Place(str(tmp_path), "", "arm", "key", {}, {}, {}))
    assert not any(isinstance(part, AdaptedLinear) for part in workspace.model(task.config.model).model.modules())
