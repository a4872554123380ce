"""Frozen language models: the embedded one, hub models at pinned revisions, local folders in the hub's layout.

    model_shape(ModelConfig)   widths from config.json or the config group, before torch is imported
    load(ModelConfig)          LanguageModel: transformers model, tokenizer, identity

Llama, Mistral and Qwen2 decoders, whose projections have the same names. safetensors only, remote code never.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from qrun.config.schema import ModelConfig, ShapeConfig
from qrun.errors import InputError

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass
class LanguageModel:
    """A frozen model ready to run. `identity` travels with every adapter and every number."""

    model: Any  # transformers PreTrainedModel
    tokenizer: Any
    identity: dict[str, Any]
    shape: ShapeConfig

    @property
    def device(self) -> Any:
        return self.model.device


def local_folder(config: ModelConfig) -> Path | None:
    """The folder on this machine, or None for a hub model."""
    if config.embedded and config.path is None:
        return Path(str(files("qrun.language"))) / config.name
    return Path(config.path).expanduser() if config.path else None


def model_shape(config: ModelConfig) -> ShapeConfig | None:
    """Shape from the local config.json, else the one the config group states, else None (a hub model without a
    stated shape)."""
    folder = local_folder(config)
    return config.shape if folder is None else read_shape(_read_config(folder))


def read_shape(values: Mapping[str, Any]) -> ShapeConfig:
    """ShapeConfig of a transformers config.json."""
    architecture = (values.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"model.path: architecture {architecture} is not supported; {', '.join(ARCHITECTURES)} have the "
            f"projections that are adapted"
        )
    defaults = {
        "head_dim": values["hidden_size"] // values["num_attention_heads"],
        "num_key_value_heads": values["num_attention_heads"],
    }
    return ShapeConfig(**{f.name: values.get(f.name) or defaults[f.name] for f in fields(ShapeConfig)})


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"model.path={folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path={folder}: no config.json there; give a folder in the hub's layout")
    try:
        return json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: not readable as JSON ({error})") from error


def load(config: ModelConfig) -> LanguageModel:
    """Load and freeze. Raises InputError for missing or broken files, a hub out of reach and gated access."""
    folder = local_folder(config)
    if folder is not None:
        model_shape(config)
        _check_folder(folder)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar() if folder is not None else logging.enable_progress_bar()
    source = str(folder if folder is not None else config.hub_id)
    revision = {} if folder is not None else {"revision": config.revision}
    dtype = getattr(torch, config.dtype.value)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **revision)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, **revision
        )
    except Exception as error:  # transformers, safetensors and the hub client share no base class
        raise InputError(_why_not(config, folder, error)) from error
    model.requires_grad_(False).eval()
    model.to(_device(config.device))
    shape = read_shape(model.config.to_dict())
    if config.shape is not None and folder is None and shape != config.shape:
        raise InputError(
            f"model={config.name}: the hub's model has shape {shape}, the config group states {config.shape}"
        )
    identity = {
        "name": config.name,
        "hub_id": config.hub_id,
        "revision": config.revision,
        "path": config.path,
        "weights": weights_digest(model),
    }
    return LanguageModel(model, tokenizer, identity, shape)


def weights_digest(model: Any) -> str:
    """Fingerprint of the weights, 16 hex digits.

    Names, shapes and up to 64 values of each, rounded to bfloat16 so that the loading dtype does not matter.
    """
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_folder(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"model.path={folder}: no tokenizer there; copy tokenizer.json of the same model into it")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"model.path={folder}: no *.safetensors there (pickled weights are not read)")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"model.device={name}: torch sees no CUDA device; use cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("model.device=mps: not available here; use cpu")
    return name


def _why_not(config: ModelConfig, folder: Path | None, error: Exception) -> str:
    text = " ".join(str(error).split())
    if folder is not None:
        return f"model.path={folder}: could not be loaded ({type(error).__name__}: {text[:160]})"
    local = "or give model.path=<local copy of the hub folder>"
    if config.gated and not os.environ.get("HF_TOKEN"):
        return (
            f"model={config.name}: {config.hub_id} is gated; accept its licence on the hub, set HF_TOKEN in "
            f"the environment, {local}"
        )
    if "gated" in text.lower() or "401" in text or "403" in text:
        return (
            f"model={config.name}: the hub refused {config.hub_id} for this HF_TOKEN; accept its licence "
            f"there with the same account, {local}"
        )
    return (
        f"model={config.name}: {config.hub_id} at {config.revision} could not be fetched "
        f"({type(error).__name__}); check the network, {local}"
    )
