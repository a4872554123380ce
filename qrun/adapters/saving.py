"""An adapter as a folder: qrun.json, adapter_model.safetensors and a model card. No pickle anywhere.

Where PEFT has the adapter (peft_folder.py) the tensors are PEFT's and an adapter_config.json lies beside them, so that
PeftModel.from_pretrained loads the folder as it is.

save(folder, adapter, base, facts)       written beside the target and renamed: an old adapter survives a failed save
read(folder) -> SavedAdapter             ours or PEFT's; everything checked: version, names, shapes, finite values
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

from qrun.adapters.card import card
from qrun.adapters.linear import Adapter
from qrun.adapters.peft_folder import PREFIX, from_peft, peft_config, read_peft, to_peft
from qrun.config.compose import plain
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError, RunFailed

# 1 spelled the adapter's fields out, and lost those it did not know; 2 had all of it in PEFT_CONFIG
FORMAT, FORMAT_VERSION, READS = "qrun-cayley", 3, (2, 3)
CONFIG, PEFT_CONFIG, WEIGHTS = "qrun.json", "adapter_config.json", "adapter_model.safetensors"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KEYS = {"base_model": dict, "adapter": dict, "sites": list, "parameters": int, "facts": dict}


@dataclass
class SavedAdapter:
    """A folder read back: `tensors` maps names to values, site by site."""

    config: AdapterConfig
    base: dict[str, Any]  # identity of the model it was trained in
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    sites: list[str]
    remark: str = ""  # of an adapter that PEFT made: what is not known of it
    shared: bool = False  # one block [1, P] for all of a site


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then swap it in. If writing fails, the old folder is untouched and RunFailed says
    why."""
    temporary, old = (target.with_name(f".{target.name}.qrun-{word}") for word in ("new", "old"))  # nobody else's
    try:
        if old.exists() and not target.exists():  # killed between the two renames below
            old.rename(target)
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
    theirs, tensors = peft_config(adapter, base), adapter.snapshot()
    if theirs is not None:
        tensors = to_peft(adapter.config.method, tensors)

    def write(target: Path) -> None:
        (target / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        if theirs is not None:
            (target / PEFT_CONFIG).write_text(json.dumps(theirs, indent=1) + "\n")
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, target / WEIGHTS, metadata={"format": "pt"})
        (target / "README.md").write_text(card(config, adapter.config, theirs is not None))

    replace_folder(folder, write)


def read(folder: Path) -> SavedAdapter:
    """Read and check an adapter folder. Raises InputError in one line for anything missing, broken, too old or new."""
    file = folder / (CONFIG if (folder / CONFIG).is_file() else PEFT_CONFIG)
    if not file.is_file():
        how = "give a folder written by `qrun train` or by PEFT"
        raise InputError(f"adapter.path={folder}: no {CONFIG} and no {PEFT_CONFIG} there; {how}")
    try:
        values = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    if isinstance(values, dict) and "peft_type" in values:
        return _read_peft(folder, values)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise InputError(f"{file}: not an adapter of qrun (format {found!r}, expected {FORMAT!r})")
    version = values.get("format_version")
    if version not in READS:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        advice = "a newer qrun; update this one" if newer else "an older qrun; train it again"
        reads = " and ".join(map(str, READS))
        raise InputError(f"{file}: written by {advice} (format {version}, this qrun reads {reads})")
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
    if any(name.startswith(PREFIX) for name in read):
        read = from_peft(config.method, read)
    owned = {site: [n for n in sorted(read) if n == site or n.startswith(f"{site}.")] for site in values["sites"]}
    tensors = {name: read[name] for site in owned for name in owned[site]}
    if not all(owned.values()) or len(tensors) != len(read):
        raise InputError(f"{folder / WEIGHTS}: its sites are not those of {file.name}")
    _check_finite(folder, tensors)
    count = sum(value.numel() for value in tensors.values())
    if count != values["parameters"]:
        raise InputError(f"{folder / WEIGHTS}: {count} values, but parameters={values['parameters']} in {file.name}")
    return SavedAdapter(config, values["base_model"], tensors, values["facts"], values["sites"])


def _read_peft(folder: Path, values: dict[str, Any]) -> SavedAdapter:
    read = read_tensors(folder / WEIGHTS)
    _check_finite(folder, read)
    found = read_peft(folder / PEFT_CONFIG, values, read)
    return SavedAdapter(found.config, {"name": found.base}, found.tensors, {}, found.sites, found.remark, found.shared)


def _check_finite(folder: Path, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.dtype not in FLOATS or not torch.isfinite(value).all():
            raise InputError(f"{folder / WEIGHTS}: {name} is not a finite table of numbers")


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
