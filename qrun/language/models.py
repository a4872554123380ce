"""Frozen language models: the embedded one, hub models at pinned revisions, local folders in the hub's layout.

    model_shape(ModelConfig)   widths from config.json or the config group
    check_model(ModelConfig)   the same, once the folder's files have been checked against it
    model_folder(ModelConfig)  the folder that everything is read from; a hub model is fetched first
    load(ModelConfig)          LanguageModel: transformers model, tokenizer, identity (identity.py)

Decoders whose projections have the same names (ARCHITECTURES). safetensors only, remote code never, and no tensor that
the files do not have. All that config.json and the headers of the weights tell is checked before torch is imported.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from qrun.config.schema import PROJECTIONS, ModelConfig, Quantization, ShapeConfig
from qrun.errors import InputError
from qrun.foreign import brief, named, read_json, said, typed
from qrun.language.hub import hub
from qrun.language.identity import (
    Identity,
    identify,
    known_as,
    remember,
    stored_tensors,
    tokenizer_files,
    weight_files,
    weights_entry,
    with_defaults,
)

ARCHITECTURES = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
    "Olmo2ForCausalLM", "GemmaForCausalLM",
)  # fmt: skip
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
    """The folder on this machine, or None for a hub model. Raises InputError for an empty model.path and for the
    name of no embedded model."""
    if config.path == "":
        raise InputError("model.path=: give a folder, or model.path=null for the model that `model` names")
    if config.embedded and config.path is None:
        shipped = Path(str(files("qrun.language"))) / config.name
        if not (shipped / "config.json").is_file():
            raise InputError(f"model.name={config.name}: no model of that name is embedded; leave it at nano")
        return shipped
    return Path(config.path) if config.path else None


def model_shape(config: ModelConfig) -> ShapeConfig | None:
    """Shape from the local config.json, else the one the config group states, else None (a hub model without a
    stated shape). Raises InputError for a folder of another shape than the model's that it is named as."""
    folder = local_folder(config)
    if folder is None:
        return config.shape
    shape = read_shape(_read_config(folder), folder)
    stated = config.shape
    if config.embedded and config.path:
        stated = model_shape(replace(config, path=None))
    if stated is not None and shape != stated:
        key = next(key for key, value in asdict(stated).items() if getattr(shape, key) != value)
        other = f"{key}={getattr(shape, key)}, model={config.name} has {getattr(stated, key)}"
        raise InputError(f"model.path={folder}: {other}; another model is model=local model.path=...")
    return shape


Count = Annotated[int, Field(ge=1, le=1 << 31)]


class Stated(TypedDict):
    """What config.json has to say, with defaults written out."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[int, Field(ge=1, le=1000)]
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    vocab_size: Count
    max_position_embeddings: Count
    tie_word_embeddings: NotRequired[bool]


def read_shape(values: Mapping[str, Any], folder: Path | str = "") -> ShapeConfig:
    """ShapeConfig of a transformers config.json, that of `folder`."""
    where, listed = f"model.path={folder}", values.get("architectures")
    architecture = listed[0] if isinstance(listed, list) and listed else "none"
    if architecture not in ARCHITECTURES:
        possible = f"{', '.join(ARCHITECTURES)} have the projections that are adapted"
        raise InputError(f"{where}: architecture {named(str(architecture))} is not supported; {possible}")
    try:
        whole = with_defaults(values)
    except (TypeError, ZeroDivisionError, KeyError):  # told by what follows
        whole = dict(values)
    shape = ShapeConfig(**typed(Stated, whole, f"{where}: its config.json"))
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    if heads % groups:
        many = f"{groups} key-value heads do not divide {heads} heads"
        raise InputError(f"{where}: its config.json: num_key_value_heads={groups}: {many}")
    return shape


def _read_config(folder: Path) -> dict[str, Any]:
    if not os.path.isdir(folder):  # a name that is too long, too
        raise InputError(f"model.path={folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path={folder}: no config.json there; give a folder in the hub's layout")
    return read_json(folder / "config.json")


def check_model(config: ModelConfig) -> ShapeConfig | None:
    """`model_shape`, with the files of a local folder checked: tokenizer, names and shapes of the stored tensors."""
    shape, folder = model_shape(config), local_folder(config)
    if folder is not None and shape is not None:
        _check_folder(folder, shape)
    return shape


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
    local = local_folder(config) is not None
    shape = model_shape(config) if local else read_shape(_read_config(folder), folder)
    if config.shape is not None and shape != config.shape:
        stated = f"the config group states {config.shape}"
        raise InputError(f"model={config.name}: the hub's model has shape {shape}, {stated}")
    assert shape is not None  # of a folder
    _check_folder(folder, shape)
    identity = identify(folder)
    origin = _origin(config, folder, identity)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)  # PEFT imports it, and it tells of kernels for 4 bits that it lacks
    placed = _placed(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer("a", verbose=False)["input_ids"])  # settings of a wrong type tell only now
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        settings.transformers_weights = weights_entry(folder)  # whatever config.json says: what `identity` describes
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=settings, dtype=getattr(torch, config.dtype.value), use_safetensors=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True, **placed,
        )  # fmt: skip
    except Exception as error:  # transformers and safetensors share no base class
        raise InputError(f"model.path={folder}: could not be loaded ({type(error).__name__}: {said(error)})") from error
    model, info = loaded
    _check_loaded(folder, info)
    model.requires_grad_(False).eval()
    if not placed:
        model.to(device_of(config.device))
    elif any(parameter.is_meta for parameter in model.parameters()):
        way = "free memory on the GPUs, or take model.quantization=nf4"
        raise InputError(f"model={config.name}: some layers do not fit on the GPUs, and none may lie elsewhere; {way}")
    if config.quantization is not None:
        origin["quantization"] = config.quantization.value
    return LanguageModel(model, tokenizer, {**origin, **asdict(identity)}, shape)


def _origin(config: ModelConfig, folder: Path, identity: Identity) -> dict[str, str | None]:
    """Name, hub_id, revision and path as they are recorded. The hub's words belong to what came from the hub: a local
    folder has them only if it holds the model that was fetched under them on this machine."""
    local = local_folder(config) is not None
    found = {"name": config.name, "hub_id": None, "revision": None, "path": config.path}
    if config.embedded:
        if config.path and identity != identify(Path(str(files("qrun.language"))) / config.name):
            how = "another model is model=local model.path=..."
            raise InputError(f"model.path={folder}: its files are not those of model={config.name}; {how}")
        return found
    commit = config.revision
    if not local and re.fullmatch("[0-9a-f]{40}", folder.name):
        commit = folder.name  # what a branch was when it was fetched
    key = f"{config.hub_id}@{commit}"
    if not local:
        remember(key, identity)
    if config.hub_id and (not local or known_as(key) == identity):
        found |= {"hub_id": config.hub_id, "revision": commit}
    return found


def _check_loaded(folder: Path, info: Mapping[str, Any]) -> None:
    """Every tensor of the model from the files, and every tensor of the files in the model."""
    wrong = {
        "missing": info["missing_keys"],
        "not in the model of config.json": info["unexpected_keys"],
        "of another shape than config.json says": [key[0] for key in info["mismatched_keys"]],
    }
    for what, found in wrong.items():
        if found:
            raise InputError(f"model.path={folder}: tensors {what}: {_listed(found)}")
    if info.get("error_msgs"):
        raise InputError(f"model.path={folder}: could not be loaded ({said(info['error_msgs'][0])})")


def _listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(map(named, ordered[:NAMED])) + more


def _check_folder(folder: Path, shape: ShapeConfig) -> None:
    """The files of a model of that shape. Norms and biases differ from one architecture to the next: `_check_loaded`
    has them, once the model is made."""
    tokenizer_files(folder)
    if (folder / "adapter_config.json").is_file():  # transformers would load the base model that it names
        raise InputError(f"model.path={folder}: has an adapter_config.json; give the folder of a model without adapter")
    stored = stored_tensors(folder, weight_files(folder))
    first = "model." if any(name.startswith("model.") for name in stored) else ""
    expected = {f"{first}{name}": size for name, size in _weights(shape).items()}
    if missing := expected.keys() - stored.keys():
        raise InputError(f"model.path={folder}: tensors missing: {_listed(missing)}")
    for name, size in expected.items():
        if (found := stored[name].shape) != size:
            raise InputError(f"model.path={folder}: {name} has shape {brief(found)}, config.json says {size}")
    above = re.compile(rf"{re.escape(first)}layers\.(\d{{1,9}})\.")
    more = [name for name in stored if (at := above.match(name)) and int(at[1]) >= shape.num_hidden_layers]
    if more:
        raise InputError(f"model.path={folder}: tensors not in the model of config.json: {_listed(more)}")


def _weights(shape: ShapeConfig) -> dict[str, list[int]]:
    """Names below `model.` and shapes of what every architecture stores: the embedding and the projections."""
    d, ffn = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sizes = dict(zip(PROJECTIONS, ([q, d], [kv, d], [kv, d], [d, q], [ffn, d], [ffn, d], [d, ffn]), strict=True))
    found = {"embed_tokens.weight": [shape.vocab_size, d]}
    for layer in range(shape.num_hidden_layers):
        for name, size in sizes.items():
            found[f"layers.{layer}.{'mlp' if name in PROJECTIONS[4:] else 'self_attn'}.{name}.weight"] = size
    return found


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
