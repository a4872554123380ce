"""A saved adapter goes into the model it was trained in and into no other."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests_support import rope_base, swapped_entries

from qrun.adapters.linear import attach, detach
from qrun.adapters.saving import read, save
from qrun.adapters.sites import sites
from qrun.config.schema import AdapterConfig, ModelConfig
from qrun.errors import InputError
from qrun.language.models import load
from qrun.recipes.measuring import attach_saved


@pytest.fixture
def saved(tiny, tmp_path):
    """The folder of an adapter of the tiny model."""
    adapter = attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4))
    save(tmp_path / "adapter", adapter, tiny.identity, {})
    detach(tiny.model, adapter)
    return tmp_path / "adapter"


def zeroed_row(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][37] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def flipped_signs(folder):
    """Of all weights but the 64 of a tensor that a sample at even steps would see."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        flat = value.flatten()
        seen = torch.zeros(len(flat), dtype=torch.bool)
        seen[:: max(1, len(flat) // 64)] = True
        tensors[name] = torch.where(seen, flat, -flat).view_as(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "part"),
    [(rope_base, "config"), (swapped_entries, "tokenizer"), (zeroed_row, "weights"), (flipped_signs, "weights")],
)
def test_an_adapter_is_refused_by_another_model_and_told_why(saved, tiny, tiny_folder, tmp_path, change, part):
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    change(other)
    language = load(ModelConfig(name="other", path=str(other)))
    with pytest.raises(InputError) as stop:
        attach_saved(language, read(saved), saved)
    here, there = tiny.identity[part], language.identity[part]
    assert str(stop.value) == (
        f"adapter.path={saved}: trained in tiny, not in model=other ({part} {here} there, {there} here)"
    )


def test_an_adapter_is_taken_by_a_copy_of_its_model_in_another_place(saved, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    language = load(ModelConfig(name="copy", path=str(tmp_path / "copy")))
    assert len(attach_saved(language, read(saved), saved).modules) == 14


@pytest.mark.parametrize("gone", ["config", "tokenizer", "weights"])
def test_an_adapter_without_an_identity_is_older_and_refused(saved, tiny, gone):
    adapter = read(saved)
    del adapter.base[gone]
    with pytest.raises(InputError, match="written by an older qrun; train it again"):
        attach_saved(tiny, adapter, saved)


def test_the_cz_error_rate_is_the_noise_that_acts_and_none_where_circuits_answer_uniformly():
    from types import SimpleNamespace

    from qrun.config.schema import DeviceConfig
    from qrun.quantum.noise import Noise
    from qrun.recipes.record import cz_error

    preset = Noise(cz=2e-3, factor=2.0)

    def rate(noise, **device):
        return cz_error(SimpleNamespace(device=DeviceConfig(**device), noise=noise))

    noisy = {"kind": "noisy", "takes_noise": True}
    assert rate(preset, **noisy) == {"cz_error_rate": pytest.approx(4e-3)}
    assert rate(preset.quiet(), **noisy) == {"cz_error_rate": 0.0}
    assert rate(preset.uniform(), **noisy) == rate(preset, kind="shots") == {}


def test_what_is_null_is_no_parameter():
    from qrun.config.compose import compose
    from qrun.recipes.record import flat_params

    found = flat_params(compose("train", ["tracking.uri=http://host"]))
    assert None not in found.values() and found["adapter.dim"] == 4
    assert not any(key.startswith(("results", "name", "tracking")) for key in found)
