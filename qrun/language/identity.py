"""Which model a folder holds: three digests that change whenever a number of the frozen model can.

    identify(folder) -> Identity(weights, config, tokenizer)      16 hex digits each, `digest` over all three

    weights    every byte of every tensor that is loaded, by name, dtype and shape; shards and metadata do not count
    config     config.json with defaults written out and one spelling of RoPE, without what cannot change a number
    tokenizer  tokenizer.json without padding and truncation, and the keys of tokenizer_config.json that change ids

Saving a loaded model with save_pretrained in the type it was stored in gives the same identity. Nothing heavy is
imported. The digest of the weights is kept in ~/.cache/qrun/identities.json, by size and time of the files.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from qrun.errors import InputError
from qrun.files import cache_folder, replaced
from qrun.foreign import Stored, brief, named, read_header, read_json

SINGLE, INDEX, KEPT = "model.safetensors", "model.safetensors.index.json", "identities.json"
CHUNK = 1 << 24  # bytes read at once
VERSION = 1  # of what is digested: raise it and kept digests are not found

# Keys of config.json that change no number of a frozen model in evaluation mode.
IGNORED = (
    "_name_or_path", "transformers_version", "transformers_weights", "torch_dtype", "dtype", "use_cache",
    "initializer_range", "attention_dropout", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
# What transformers takes where config.json has no such key, of all architectures and of some.
DEFAULTS: Mapping[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "pretraining_tp": 1}
OWN_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "smollm3": {"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True},
    "olmo2": {"rms_norm_eps": 1e-5},
    "gemma": {
        "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    },
}  # fmt: skip
SCALED = ("llama3", "yarn", "longrope")  # RoPE types that know the length of pretraining

TOKENIZER_KEYS = (
    "tokenizer_class", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "chat_template",
    "bos_token", "eos_token", "unk_token", "pad_token",
)  # fmt: skip
FAST_FILE = "tokenizer.json"
SLOW_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")  # the first two have a vocabulary


@dataclass(frozen=True)
class Identity:
    """What has to be equal for two folders to hold the same model."""

    weights: str
    config: str
    tokenizer: str

    @property
    def digest(self) -> str:
        return _hex(f"{self.weights} {self.config} {self.tokenizer}".encode())


def identify(folder: Path) -> Identity:
    """Identity of a model folder in the hub's layout; InputError in one line for what is missing, broken or unsafe."""
    return Identity(weights_digest(folder), config_digest(folder), tokenizer_files_digest(folder))


def weights_entry(folder: Path) -> str:
    """The file that loading starts from: model.safetensors, else its index, else the only *.safetensors there."""
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            return name
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if not others:
        raise InputError(f"model.path={folder}: no *.safetensors there (pickled weights are not read)")
    if len(others) > 1:
        raise InputError(f"model.path={folder}: {len(others)} *.safetensors, but neither {SINGLE} nor {INDEX}")
    return others[0]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded. Raises InputError for an index that names anything else."""
    entry = weights_entry(folder)
    if entry != INDEX:
        return [folder / entry]
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"model.path={folder}: {INDEX} has no weight_map")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise InputError(f"model.path={folder}: {INDEX} names {brief(name)}; only *.safetensors beside it are read")
        if not isfile(folder / name):
            raise InputError(f"model.path={folder}: {INDEX} names {named(name)}, which is not there")
    return [folder / name for name in names]


def weights_digest(folder: Path) -> str:
    """Digest of all tensors, kept by name, size and time of their files."""
    files = weight_files(folder)
    stats = [(path.name, path.stat()) for path in files]
    stamp = [VERSION, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]
    known, key = _kept(), str(folder.resolve())
    entry = known.get(key)
    if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("weights"), str):
        return entry["weights"]
    weights = _digest_tensors(folder, files)
    _keep({**known, key: {"stamp": stamp, "weights": weights}})
    return weights


def stored_tensors(folder: Path, files: list[Path]) -> dict[str, Stored]:
    """All tensors of a model by name, from the headers of its files."""
    where: dict[str, Stored] = {}
    for path in files:
        for name, tensor in read_header(path, f"model.path={folder}: {path.name}:").items():
            if name in where:
                both = f"both in {where[name].path.name} and in {path.name}"
                raise InputError(f"model.path={folder}: {named(name)} is {both}")
            where[name] = tensor
    return where


def _digest_tensors(folder: Path, files: list[Path]) -> str:
    where = stored_tensors(folder, files)
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with ExitStack() as stack:
        opened = {path: stack.enter_context(path.open("rb", buffering=0)) for path in files}
        for name, tensor in sorted(where.items()):
            digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            file, left = opened[tensor.path], tensor.size
            file.seek(tensor.start)
            while left:
                count = file.readinto(buffer[: min(left, CHUNK)])
                if not count:
                    raise InputError(f"model.path={folder}: {tensor.path.name} became shorter while it was read")
                digest.update(buffer[:count])
                left -= count
    return digest.hexdigest()[:16]


def config_digest(folder: Path) -> str:
    """Digest of what config.json says about the numbers."""
    values = read_json(folder / "config.json")
    try:
        return _hex(_canonical(_normal(values)))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"model.path={folder}: config.json is not that of a decoder ({said})") from error


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with what transformers takes for keys that it has not."""
    values = {**DEFAULTS, **OWN_DEFAULTS.get(str(config.get("model_type")), {}), **config}
    if values.get("head_dim") is None:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    return values


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    """One spelling of config.json; null and false are what an absent key means."""
    values = {k: v for k, v in with_defaults(config).items() if k not in IGNORED}
    kind = values.get("model_type")
    rope = dict(values.pop("rope_scaling", None) or values.get("rope_parameters") or {})
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.pop("type", None)
    for key, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", None)):
        rope.setdefault(key, values.pop(key, default))
        values.pop(key, None)
    if rope["rope_type"] in SCALED:
        stated = values.get("original_max_position_embeddings")
        rope.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
        rope["original_max_position_embeddings"] = stated or rope["original_max_position_embeddings"]
    values["rope_parameters"] = rope
    layers = range(values["num_hidden_layers"])
    if kind in ("qwen2", "qwen3"):  # their window acts on the upper layers, and only if it is switched on
        window = values.get("sliding_window", 4096) if values.pop("use_sliding_window", False) else None
        first = values.pop("max_window_layers", 28)
        spread = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in layers]
        values["layer_types"], values["sliding_window"] = values.get("layer_types") or spread, window
    if kind == "smollm3":  # every fourth layer has no positions, and the window if there is one
        every = values.pop("no_rope_layer_interval", 4)
        turned = values.get("no_rope_layers") or [int((i + 1) % every != 0) for i in layers]
        window = values.get("sliding_window") if values.pop("use_sliding_window", False) else None
        spread = ["full_attention" if on or window is None else "sliding_attention" for on in turned]
        values["no_rope_layers"], values["layer_types"] = turned, values.get("layer_types") or spread
        values["sliding_window"] = window
    if kind == "gemma" and values["hidden_act"] == "gelu":  # transformers reads it so, too
        values["hidden_act"] = "gelu_pytorch_tanh"
    return values


def tokenizer_files(folder: Path) -> list[Path]:
    """tokenizer.json, else the files of a slow tokenizer. Raises InputError where there is no vocabulary."""
    if (folder / FAST_FILE).is_file():
        return [folder / FAST_FILE]
    found = [folder / name for name in SLOW_FILES if (folder / name).is_file()]
    if not {path.name for path in found} & {*SLOW_FILES[:2]}:
        raise InputError(f"model.path={folder}: no tokenizer there; copy tokenizer.json of the same model into it")
    return found


def tokenizer_files_digest(folder: Path) -> str:
    """Digest of the tokenizer's files."""
    digest = hashlib.sha256()
    for path in tokenizer_files(folder):
        if path.name == FAST_FILE:
            kept = {k: v for k, v in read_json(path).items() if k not in ("padding", "truncation")}
            digest.update(json.dumps(kept, sort_keys=True).encode())
        else:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(_canonical(tokenizer_settings(folder)))
    return digest.hexdigest()[:16]


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """TOKENIZER_KEYS of tokenizer_config.json, special tokens as their text, names of classes without their age."""
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values.update(read_json(folder / name))
    template = folder / "chat_template.jinja"
    if template.is_file():
        values["chat_template"] = template.read_text(errors="replace")
    kept = {key: values.get(key) for key in TOKENIZER_KEYS}
    for key, value in kept.items():
        if isinstance(value, dict) and "content" in value:
            kept[key] = value["content"]
    kind = str(kept["tokenizer_class"] or "")
    kept["tokenizer_class"] = "TokenizersBackend" if kind == "PreTrainedTokenizerFast" else kind.removesuffix("Fast")
    return kept


def _canonical(values: Any) -> bytes:
    return json.dumps(_plain(values), sort_keys=True).encode()


def _plain(value: Any) -> Any:
    """Without null, false and empty entries of objects, and with one kind of number."""
    if isinstance(value, dict):
        items = ((str(key), _plain(item)) for key, item in value.items())
        return {key: item for key, item in items if not (item is None or item is False or item in ({}, [], ""))}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _kept() -> dict[str, Any]:
    try:
        found = json.loads((cache_folder() / KEPT).read_text())
    except (OSError, ValueError, RuntimeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(known: dict[str, Any]) -> None:
    """A cache that cannot be written is only slower."""
    with suppress(OSError, RuntimeError), replaced(cache_folder() / KEPT) as file:
        file.write_text(json.dumps(known))


def remember(name: str, identity: Identity) -> None:
    """Keep what was fetched from the hub under a name."""
    if known_as(name) != identity:
        _keep({**_kept(), name: asdict(identity)})


def known_as(name: str) -> Identity | None:
    """What was last fetched from the hub under a name on this machine."""
    entry = _kept().get(name)
    return Identity(**entry) if isinstance(entry, dict) and entry.keys() == {"weights", "config", "tokenizer"} else None
