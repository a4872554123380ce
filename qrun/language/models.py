"""Frozen language models: the embedded one, hub models at pinned revisions, local folders in the hub's layout.

    model_shape(ModelConfig)   widths from config.json or the config group, before torch is imported
    model_folder(ModelConfig)  the folder that everything is read from; a hub model is fetched first
    load(ModelConfig)          LanguageModel: transformers model, tokenizer, identity (identity.py)

Llama, Mistral and Qwen2 decoders, whose projections have the same names. safetensors only, remote code
never, and no tensor that the files do not have.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qrun.config.schema import ModelConfig, Quantization, ShapeConfig
from qrun.errors import InputError
from qrun.language.hub import hub
from qrun.language.identity import Identity, identify, read_json, weight_files, weights_entry

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
HUB_FILES, HUB_OTHERS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"], ["*/*", "consolidated*"]
NAMED = 3  # tensors named in an error


@dataclass
class LanguageModel:
    """A frozen model ready to run. `identity` travels with every adapter and every number."""

    model: Any  # transformers PreTrainedModel
    tokenizer: Any
    identity: dict[str, Any]
    shape: ShapeConfig

    @property
    def digest(self) -> str:
        """16 hex digits over weights, config and tokenizer."""
        return Identity(*(self.identity[part] for part in ("weights", "config", "tokenizer"))).digest

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
        possible = f"{', '.join(ARCHITECTURES)} have the projections that are adapted"
        raise InputError(f"model.path: architecture {architecture} is not supported; {possible}")

    def positive(name: str) -> int:
        value = values.get(name)
        if type(value) is not int or value < 1:
            raise InputError(f"model.path: its config.json has {name}={value!r}; a positive whole number is needed")
        return value

    width, heads = positive("hidden_size"), positive("num_attention_heads")
    derived = {"head_dim": width // heads, "num_key_value_heads": heads}
    missing = {name: value for name, value in derived.items() if values.get(name) is None}
    numbers = (f.name for f in fields(ShapeConfig) if f.name not in missing and f.type is int)
    tied = bool(values.get("tie_word_embeddings", False))
    return ShapeConfig(**{name: positive(name) for name in numbers}, **missing, tie_word_embeddings=tied)


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"model.path={folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path={folder}: no config.json there; give a folder in the hub's layout")
    return read_json(folder / "config.json")


def model_folder(config: ModelConfig) -> Path:
    """The model's folder on this machine; a hub model is fetched first. Raises InputError if it cannot be."""
    folder = local_folder(config)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    name, commit = str(config.hub_id), config.revision
    with hub() as away:
        try:
            return Path(snapshot_download(name, revision=commit, allow_patterns=HUB_FILES, ignore_patterns=HUB_OTHERS))
        except Exception as error:  # the hub client's errors share no base class
            raise InputError(_why_not(config, error, away)) from error


def load(config: ModelConfig) -> LanguageModel:
    """Load and freeze. Raises InputError for missing or broken files, a hub out of reach and gated access."""
    folder = model_folder(config)
    read_shape(_read_config(folder))
    _check_folder(folder)
    identity = identify(folder)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    placed = _placed(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        settings.transformers_weights = weights_entry(folder)  # whatever config.json says: what `identity` describes
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=settings, dtype=getattr(torch, config.dtype.value), use_safetensors=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True, **placed,
        )  # fmt: skip
    except Exception as error:  # transformers and safetensors share no base class
        text = " ".join(str(error).split())
        raise InputError(f"model.path={folder}: could not be loaded ({type(error).__name__}: {text[:160]})") from error
    model, info = loaded
    _check_loaded(folder, info)
    model.requires_grad_(False).eval()
    if not placed:
        model.to(device_of(config.device))
    elif any(parameter.is_meta for parameter in model.parameters()):
        way = "free memory on the GPUs, or take model.quantization=nf4"
        raise InputError(f"model={config.name}: some layers do not fit on the GPUs, and none may lie elsewhere; {way}")
    shape = read_shape(model.config.to_dict())
    if config.shape is not None and local_folder(config) is None and shape != config.shape:
        stated = f"the config group states {config.shape}"
        raise InputError(f"model={config.name}: the hub's model has shape {shape}, {stated}")
    origin = {"name": config.name, "hub_id": config.hub_id, "revision": config.revision, "path": config.path}
    if config.quantization is not None:
        origin["quantization"] = config.quantization.value
    return LanguageModel(model, tokenizer, {**origin, **asdict(identity)}, shape)


def _check_loaded(folder: Path, info: Mapping[str, Any]) -> None:
    """Every tensor of the model from the files, and every tensor of the files in the model."""
    wrong = {
        "missing": info["missing_keys"],
        "not in the model of config.json": info["unexpected_keys"],
        "of another shape than config.json says": [key[0] for key in info["mismatched_keys"]],
    }
    for what, found in wrong.items():
        if found:
            names = sorted(found)
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise InputError(f"model.path={folder}: tensors {what}: {', '.join(names[:NAMED])}{more}")
    if info.get("error_msgs"):
        raise InputError(f"model.path={folder}: could not be loaded ({' '.join(str(info['error_msgs'][0]).split())})")


def _check_folder(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"model.path={folder}: no tokenizer there; copy tokenizer.json of the same model into it")
    if (folder / "adapter_config.json").is_file():  # transformers would load the base model that it names
        raise InputError(f"model.path={folder}: has an adapter_config.json; give the folder of a model without adapter")
    weight_files(folder)


def _placed(config: ModelConfig) -> dict[str, Any]:
    """What from_pretrained is told so that every tensor goes from its shard straight to its device: nothing for a whole
    model on the processor. Raises InputError where a package is missing."""
    device = device_of(config.device)
    if config.device_map is None and config.quantization is None and device == "cpu":
        return {}
    words: dict[str, Any] = {"device_map": config.device_map.value if config.device_map else {"": device}}
    if config.quantization is not None:
        if find_spec("bitsandbytes") is None:
            how = "pip install 'qrun-adapters[quantized]'"
            raise InputError(f"model.quantization={config.quantization.value}: bitsandbytes is not installed; {how}")
        import torch
        from transformers import BitsAndBytesConfig

        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        kind = {"load_in_8bit": True} if config.quantization is Quantization.int8 else {"load_in_4bit": True, **four}
        dtype = getattr(torch, config.dtype.value)
        words["quantization_config"] = BitsAndBytesConfig(**kind, bnb_4bit_compute_dtype=dtype)
    return words


def device_of(name: str) -> str:
    """The device that model.device names. Raises InputError where it is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"model.device={name}: torch sees no CUDA device; use cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("model.device=mps: not available here; use cpu")
    return name


def _why_not(config: ModelConfig, error: Exception, away: str) -> str:
    """Why the hub did not give a model, in one line; `away` if it was not asked."""
    text = " ".join(str(error).split())
    local = "or give model.path=<local copy of the hub folder>"
    if away:
        why = f"{config.hub_id} at {config.revision} is not in the hub's cache on this machine, and {away}; connect"
    elif not ("gated" in text.lower() or "401" in text or "403" in text):
        missed = f"{config.hub_id} at {config.revision} could not be fetched ({type(error).__name__})"
        why = f"{missed}; check the name"
    elif config.gated and not os.environ.get("HF_TOKEN"):
        why = f"{config.hub_id} is gated; accept its licence on the hub, set HF_TOKEN in the environment"
    else:
        refused = f"the hub refused {config.hub_id} for this HF_TOKEN"
        why = f"{refused}; accept its licence there with the same account"
    return f"model={config.name}: {why}, {local}"
