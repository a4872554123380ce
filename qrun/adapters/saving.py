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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qrun.adapters.linear import Adapter
from qrun.config.schema import AdapterConfig, Method, Side
from qrun.errors import InputError, RunFailed

FORMAT, FORMAT_VERSION = "qrun-cayley", 1
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass
class SavedAdapter:
    """A folder read back: `tensors` maps site names to [B, b(b-1)/2], or a control's tensor names to theirs."""

    config: AdapterConfig
    base: dict[str, Any]  # identity of the model it was trained in
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    sites: list[str]


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then swap it in.

    If writing fails, the old folder is untouched and RunFailed says why.
    """
    temporary, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in temporary.iterdir():
            with path.open("rb") as file:
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
    c = adapter.config
    config = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "base_model": base, "method": c.method.value, "dim": c.dim,
        "rank": c.rank, "factors": c.factors, "projections": list(c.projections), "layers": list(c.layers),
        "side": c.side.value,
        "sign_constrained": c.sign_constrained, "sites": list(adapter.modules), "parameters": adapter.count(),
        "facts": facts,
    }  # fmt: skip

    def write(target: Path) -> None:
        (target / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        save_file({k: v.contiguous().cpu() for k, v in adapter.snapshot().items()}, target / WEIGHTS)
        (target / "README.md").write_text(_card(config))

    replace_folder(folder, write)


def read(folder: Path) -> SavedAdapter:
    """Read and check an adapter folder.

    Raises InputError in one line for anything that is missing, broken or too new.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"adapter.path={folder}: no {CONFIG} there; give a folder written by `qrun train`")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{folder / CONFIG}: not readable as JSON ({error})") from error
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder / CONFIG}: not an adapter of qrun (format "
            f"{config.get('format', config.get('peft_type'))!r}, expected {FORMAT!r})"
        )
    if config["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{folder}: format version {config['format_version']} is newer than this qrun reads "
            f"({FORMAT_VERSION}); update qrun"
        )
    tensors, sites, dim = read_tensors(folder / WEIGHTS), config["sites"], config["dim"]
    adapter = AdapterConfig(
        method=Method(config.get("method", "cayley")), dim=dim, rank=config.get("rank", 1),
        factors=config.get("factors", 2),
        projections=config["projections"], layers=config["layers"], side=Side(config["side"]),
        sign_constrained=config["sign_constrained"],
    )  # fmt: skip
    cayley = adapter.method is Method.cayley
    owners = set(tensors) if cayley else {site for name in tensors for site in sites if name.startswith(f"{site}.")}
    if owners != set(sites):
        raise InputError(f"{folder / WEIGHTS}: its sites are not those of {CONFIG}")
    for name, value in tensors.items():
        wrong = cayley and (value.ndim != 2 or value.shape[1] != dim * (dim - 1) // 2)
        if wrong or not torch.isfinite(value).all():
            table = f"[blocks, {dim * (dim - 1) // 2}] table" if cayley else "tensor"
            raise InputError(f"{folder / WEIGHTS}: {name} is not a finite {table}")
    return SavedAdapter(
        adapter,
        config["base_model"],
        {name: tensors[name] for name in (sites if cayley else sorted(tensors))},
        config["facts"],
        sites,
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or one line if it is missing or truncated."""
    if not path.is_file():
        raise InputError(f"{path}: missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({error})") from error


def to_peft(folder: Path, adapter: Adapter, base: dict[str, Any]) -> None:
    """Write the rotation as a PEFT OFT adapter (exact Cayley).

    PEFT computes x R with R = (I - S)(I + S)^-1 for skew S on row vectors, so that R = Q^T and S = -K/2 (its
    `oft_R.weight` is S's upper triangle).
    """
    c = adapter.config
    if c.side is not Side.input or c.sign_constrained or c.method is not Method.cayley:
        raise InputError(
            "PEFT's OFT acts on the input and without sign constraint; this adapter cannot be written as one"
        )
    config = {
        "peft_type": "OFT", "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.get("hub_id") or base.get("path") or base["name"],
        "revision": base.get("revision"), "r": 0, "oft_block_size": c.dim, "use_cayley_neumann": False,
        "block_share": False, "coft": False,
        "module_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "init_weights": True, "inference_mode": True,
        "target_modules": [f"model.{name}" for name in adapter.modules],
    }  # fmt: skip

    def write(target: Path) -> None:
        (target / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        tensors = {
            f"base_model.model.model.{name}.oft_R.weight": (-value / 2).contiguous().cpu()
            for name, value in adapter.snapshot().items()
        }
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})

    replace_folder(folder, write)


def _card(config: dict[str, Any]) -> str:
    base, facts = config["base_model"], config["facts"]
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if not isinstance(value, dict | list))
    header = (
        f"---\nlibrary_name: qrun\nbase_model: {base['hub_id']}\n---\n"
        if base.get("hub_id")
        else "---\nlibrary_name: qrun\n---\n"
    )
    blocks = f"Block-diagonal Cayley adapter (arXiv:2605.05914), b = {config['dim']}"
    what = {"cayley": blocks, "lora": f"LoRA of rank {config['rank']}"}.get(
        config["method"], f"Control `{config['method']}`, b = {config['dim']}"
    )
    signed = ", sign-constrained" if config["sign_constrained"] else ""
    return (
        f"{header}# Adapter ({config['method']}) for {base['name']}\n\n"
        f"{what}, {config['side']} side{signed}, {len(config['sites'])} sites, {config['parameters']:,} parameters, "
        f"on the frozen model {base['name']} (revision {base.get('revision')}, weights {base.get('weights')}).\n\n"
        f"| fact | value |\n| --- | --- |\n{rows}\n\n"
        "Load: `qrun eval perplexity adapter.path=<this folder>`; for PEFT: `qrun export <this folder> --to "
        "peft --out <new folder>`.\n"
    )
