"""Measurements of what is opened."""

import copy

import pytest
import torch

from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.errors import RunFailed
from qrun.recipes.measuring import measured


def test_what_is_not_finite_is_named(tiny_folder, story_file):
    words = ["model=local", f"model.path={tiny_folder}", "data=text", f"data.path={story_file}", "protocol.ctx=64"]
    config = compose("perplexity", [*words, "evaluation.max_tokens=200"])
    opened = Workspace().open(config)
    opened.language.model = copy.deepcopy(opened.language.model)
    with torch.no_grad():
        opened.language.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RunFailed, match=r"^with adapter: the model's log-likelihoods are not finite"):
        measured("with adapter", opened, config, None)
