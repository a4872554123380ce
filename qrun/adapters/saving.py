"""An adapter as a folder: qrun.json, adapter_model.safetensors and a model card. No pickle anywhere.

Where PEFT has the adapter (peft_folder.py) the tensors are PEFT's and an adapter_config.json lies beside them, so that
PeftModel.from_pretrained loads the folder as it is.

save(folder, adapter, base, facts)       written beside the target and renamed: an old adapter survives a failed save
read(folder) -> SavedAdapter             ours or PEFT's; all is checked: version, types, names, shapes, finite values
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, NotRequired

import psutil
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from qrun.adapters.card import card
from qrun.adapters.linear import Adapter
from qrun.adapters.methods import spec
from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.peft_folder import PREFIX, from_peft, peft_config, read_peft, to_peft
from qrun.adapters.sites import PLACE, Site
from qrun.config.compose import plain
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError, RunFailed
from qrun.foreign import brief, named, read_header, read_json, said, typed

# 1 spelled the adapter's fields out, and lost those it did not know; 2 had all of it in PEFT_CONFIG; 3 had no `count`,
# 4 no `order`
FORMAT, FORMAT_VERSION, READS = "qrun-cayley", 5, (2, 3, 4, 5)
SINCE = {"count": 4, "order": 5}  # fields of the adapter's config that older versions do not have
CONFIG, PEFT_CONFIG, WEIGHTS = "qrun.json", "adapter_config.json", "adapter_model.safetensors"
FLOATS = ("F32", "F16", "BF16")
CONFIG_BYTES = 1 << 24
LARGEST = 1e6  # of a trained value: with K beyond it a solve in float64 is none, and a control is not finite
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,120}$")]


class Base(TypedDict):
    """The model of an adapter: its identity, and where it came from."""

    name: Word
    weights: Word
    config: NotRequired[Word]
    tokenizer: NotRequired[Word]
    hub_id: NotRequired[Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,200}$")] | None]
    revision: NotRequired[Word | None]
    path: NotRequired[str | None]


class Facts(TypedDict, total=False):
    """What the card puts into its header; other facts are rows of its table."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic's own name
    data: str | None
    data_hub_id: str | None
    data_split: str | None


class Stored(TypedDict):
    """qrun.json but for its format and version."""

    base_model: Base
    adapter: dict[str, Any]  # read by _adapter_config
    sites: Annotated[list[Annotated[str, Field(pattern=f"^{PLACE}$")]], Field(min_length=1)]
    parameters: int
    facts: Facts


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
    """Let `write` fill a new folder, then swap it in. If that fails, what was there before is there again and RunFailed
    says why."""
    temporary = target.with_name(f".{target.name}.qrun-new-{os.getpid()}")  # nobody else's
    old = target.with_name(f".{target.name}.qrun-old")
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
        if old.exists() and not target.exists():
            old.rename(target)
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
    values = read_json(file, CONFIG_BYTES)
    if "peft_type" in values:
        found = read_peft(file, values, read_tensors(folder / WEIGHTS))
        base = {"name": found.base}
        return SavedAdapter(found.config, base, found.tensors, {}, found.sites, found.remark, found.shared)
    if values.get("format") != FORMAT:
        raise InputError(f"{file}: not an adapter of qrun (format {brief(values.get('format'))}, expected {FORMAT!r})")
    version = values.get("format_version")
    if type(version) is not int or version not in READS:
        newer = type(version) is int and version > FORMAT_VERSION
        advice = "a newer qrun; update this one" if newer else "an older qrun; train it again"
        reads = f"{READS[0]} to {READS[-1]}"
        raise InputError(f"{file}: written by {advice} (format {brief(version)}, this qrun reads {reads})")
    stored = typed(Stored, values, file)
    later = {key: getattr(AdapterConfig, key) for key, since in SINCE.items() if version < since}
    config = _adapter_config({**later, **stored["adapter"]}, file)
    read = read_tensors(folder / WEIGHTS, stored["parameters"])
    if any(name.startswith(PREFIX) for name in read):
        read = from_peft(config.method, read, folder / WEIGHTS)
    owned = {site: [n for n in sorted(read) if n == site or n.startswith(f"{site}.")] for site in stored["sites"]}
    tensors = {name: read[name] for site in owned for name in owned[site]}
    if not all(owned.values()) or len(tensors) != len(read):
        raise InputError(f"{folder / WEIGHTS}: its sites are not those of {file.name}")
    _check_blocks(folder / WEIGHTS, config, tensors)
    return SavedAdapter(config, dict(stored["base_model"]), tensors, dict(stored["facts"]), stored["sites"])


def _check_blocks(file: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Blocks have [B, P] parameters, P of one block; how many blocks a site has the model says, when it is attached."""
    method, one = spec(config.method), [Site(0, "q_proj", config.dim, config.dim)]
    if isinstance(method, BlockMethod):
        method.check(config, one)
        each = method.count(config, one)
        for name, value in tensors.items():
            if value.ndim != 2 or value.shape[1] != each or not len(value):
                has = f"method {config.method} with b = {config.dim} has [blocks, {each}]"
                raise InputError(f"{file}: {name}: tensor of shape {brief(list(value.shape))}, but {has}")


def _adapter_config(values: dict[str, Any], file: Path) -> AdapterConfig:
    """The config that was saved, every field of it, or InputError naming the first that this qrun reads otherwise."""
    filled = next((key for key, value in values.items() if "${" in json.dumps(value)), None)
    if filled is not None:  # OmegaConf would fill in from the environment
        raise InputError(f"{file}: adapter.{filled[:60]}: has ${{...}}; plain values only")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(AdapterConfig), values)
        config: AdapterConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except InputError as error:
        raise InputError(f"{file}: {said(error)}") from error
    except OmegaConfBaseException as error:
        given, key = brief(values.get(str(error.full_key))), str(error.full_key)[:60]
        raise InputError(f"{file}: adapter.{key}={given}: {said(str(error.msg).splitlines()[0])}") from error
    for key, value in plain(config).items():
        given = values.get(key, "(missing)")
        if json.dumps(given, sort_keys=True) != json.dumps(value, sort_keys=True):
            read = f"cannot be kept; this qrun reads it as {brief(value)}"
            raise InputError(f"{file}: adapter.{key}={brief(given)} {read}")
    return config


def read_tensors(path: Path, parameters: int | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file: FLOATS of finite values, `parameters` of them if that is stated. Header and size
    are checked before anything is read."""
    header = read_header(path, types=FLOATS)
    count = sum(prod(stored.shape) for stored in header.values())
    if parameters is not None and count != parameters:
        raise InputError(f"{path}: {count} values, but parameters={brief(parameters)} in {CONFIG}")
    if (size := sum(stored.size for stored in header.values())) > (memory := psutil.virtual_memory().total):
        raise InputError(f"{path}: {size:,} bytes; this machine has {memory:,}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({said(error)})") from error
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: {named(name)} has values that are not finite")
        if (value.abs() > LARGEST).any():
            raise InputError(f"{path}: {named(name)} has values beyond {LARGEST:g}, which no training came to")
    return tensors
