"""Measurements of what is opened."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from qrun.adapters.saving import read
from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.errors import InputError, RunFailed
from qrun.recipes.measuring import attach_saved, measured


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
