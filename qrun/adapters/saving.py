"""An adapter as a folder: adapter_config.json, adapter_model.safetensors and a model card. No pickle anywhere.

save(folder, adapter, base, facts)       written beside the target and renamed: an old adapter survives a failed save
read(folder) -> SavedAdapter             everything checked: version, names, shapes, finite values
to_peft(folder, ...)                     the same rotation as a PEFT OFT adapter
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qrun.adapters.linear import Adapter
from qrun.adapters.methods import spec
from qrun.config.compose import plain
from qrun.config.schema import AdapterConfig, Side
from qrun.errors import InputError, RunFailed

FORMAT, FORMAT_VERSION = "qrun-cayley", 2  # 1 spelled the adapter's fields out, and lost those it did not know
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEYS = {"base_model": dict, "adapter": dict, "sites": list, "parameters": int, "facts": dict}


@dataclass
class SavedAdapter:
    """A folder read back: `tensors` maps names to values, site by site."""

    config: AdapterConfig
    base: dict[str, Any]  # identity of the model it was trained in
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    sites: list[str]


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then swap it in. If writing fails, the old folder is untouched and RunFailed says
    why."""
    temporary, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in temporary.iterdir():
            with path.open("rb+") as file:  # Windows flushes no file that is open for reading alone
                os.fsync(file.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunFailed(f"{target}: could not be saved ({error}); what was there before is kept") from error


def save(folder: Path, adapter: Adapter, base: dict[str, Any], facts: dict[str, Any]) -> None:
    """`base` identifies the frozen model, `facts` is what the card tells: data, training, results."""
    config = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "base_model": base, "adapter": plain(adapter.config),
        "sites": list(adapter.modules), "parameters": adapter.count(), "facts": facts,
    }  # fmt: skip

    def write(target: Path) -> None:
        (target / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        save_file({k: v.contiguous().cpu() for k, v in adapter.snapshot().items()}, target / WEIGHTS)
        (target / "README.md").write_text(_card(config, adapter.config))

    replace_folder(folder, write)


def read(folder: Path) -> SavedAdapter:
    """Read and check an adapter folder. Raises InputError in one line for anything missing, broken, too old or new."""
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"adapter.path={folder}: no {CONFIG} there; give a folder written by `qrun train`")
    try:
        values = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    found = values.get("format", values.get("peft_type")) if isinstance(values, dict) else None
    if found != FORMAT:
        raise InputError(f"{file}: not an adapter of qrun (format {found!r}, expected {FORMAT!r})")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        advice = "a newer qrun; update this one" if newer else "an older qrun; train it again"
        raise InputError(f"{file}: written by {advice} (format {version}, this qrun reads {FORMAT_VERSION})")
    for key, kind in KEYS.items():
        if type(values.get(key)) is not kind:
            raise InputError(f"{file}: {key}={values.get(key)!r} is not a {kind.__name__}")
    for key in ("name", "weights"):
        if not isinstance(values["base_model"].get(key), str):
            raise InputError(f"{file}: base_model.{key}={values['base_model'].get(key)!r} is not a str")
    if not all(isinstance(site, str) for site in values["sites"]):
        raise InputError(f"{file}: sites={values['sites']} are not names")
    config = _adapter_config(values["adapter"], file)
    read = read_tensors(folder / WEIGHTS)
    owned = {site: [n for n in sorted(read) if n == site or n.startswith(f"{site}.")] for site in values["sites"]}
    tensors = {name: read[name] for site in owned for name in owned[site]}
    if not all(owned.values()) or len(tensors) != len(read):
        raise InputError(f"{folder / WEIGHTS}: its sites are not those of {CONFIG}")
    for name, value in tensors.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise InputError(f"{folder / WEIGHTS}: {name} is not a finite table of numbers")
    count = sum(value.numel() for value in tensors.values())
    if count != values["parameters"]:
        raise InputError(f"{folder / WEIGHTS}: {count} values, but parameters={values['parameters']} in {CONFIG}")
    return SavedAdapter(config, values["base_model"], tensors, values["facts"], values["sites"])


def _adapter_config(values: dict[str, Any], file: Path) -> AdapterConfig:
    """The config that was saved, every field of it, or InputError naming the first that this qrun reads otherwise."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(AdapterConfig), values)
        config: AdapterConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except OmegaConfBaseException as error:
        given = values.get(str(error.full_key))
        raise InputError(f"{file}: adapter.{error.full_key}={given!r}: {str(error.msg).splitlines()[0]}") from error
    for key, value in plain(config).items():
        given = values.get(key, "(missing)")
        if json.dumps(given, sort_keys=True) != json.dumps(value, sort_keys=True):
            raise InputError(f"{file}: adapter.{key}={given!r} cannot be kept; this qrun reads it as {value!r}")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or one line if it is missing or truncated."""
    if not path.is_file():
        raise InputError(f"{path}: missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({error})") from error


def to_peft(folder: Path, adapter: Adapter, base: dict[str, Any]) -> None:
    """Write the rotation as a PEFT OFT adapter (exact Cayley). PEFT computes x R with R = (I - S)(I + S)^-1 for skew S
    on row vectors, so that R = Q^T and S = -K/2 (its `oft_R.weight` is S's upper triangle)."""
    c = adapter.config
    if c.side is not Side.input or c.sign_constrained or c.method != "cayley":
        why = "PEFT's OFT has Cayley blocks on the input, without sign constraint"
        raise InputError(f"{why}; this adapter cannot be written as one")
    config = {
        "peft_type": "OFT", "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.get("hub_id") or base.get("path") or base["name"],
        "revision": base.get("revision"), "r": 0, "oft_block_size": c.dim, "use_cayley_neumann": False,
        "block_share": False, "coft": False, "module_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "init_weights": True, "inference_mode": True, "target_modules": [f"model.{name}" for name in adapter.modules],
    }  # fmt: skip

    def write(target: Path) -> None:
        (target / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        halves = {name: (-value / 2).contiguous().cpu() for name, value in adapter.snapshot().items()}
        tensors = {f"base_model.model.model.{name}.oft_R.weight": half for name, half in halves.items()}
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})

    replace_folder(folder, write)


def _card(values: dict[str, Any], config: AdapterConfig) -> str:
    """The model card (Markdown with the hub's header) of what `save` writes."""
    base, method = values["base_model"], spec(config.method)
    rows = "\n".join(f"| {k} | {v} |" for k, v in values["facts"].items() if not isinstance(v, dict | list))
    hub = f"base_model: {base['hub_id']}\n" if base.get("hub_id") else ""
    return (
        f"---\nlibrary_name: qrun\n{hub}---\n# Adapter ({config.method}) for {base['name']}\n\n"
        f"{method.title}, {method.label(config)}: {config.side.value} side, {len(values['sites'])} sites, "
        f"{values['parameters']:,} parameters, on the frozen model {base['name']} (revision {base.get('revision')}, "
        f"weights {base.get('weights')}).\n\n| fact | value |\n| --- | --- |\n{rows}\n\n"
        "Load: `qrun eval perplexity adapter.path=<this folder>`; for PEFT: `qrun export <this folder> --to "
        "peft --out <new folder>`.\n"
    )
