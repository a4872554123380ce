"""The state of a training run in one safetensors file, replaced atomically: a kill or a full disk leaves the last good
one.

Tensors: parameters, both AdamW moments, the best parameters so far. The file's metadata holds the scalars as JSON. The
order of the training windows is a function of (seed, epoch), so no random state needs saving and a resumed run repeats
the uninterrupted one bit for bit.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qrun.adapters.linear import Adapter
from qrun.errors import InputError, RunFailed
from qrun.files import replaced


@dataclass
class Progress:
    """Scalars of a training run; `history` has a row per step, `evaluations` one per validation."""

    step: int = 0
    best_nats: float = float("inf")
    best_step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # config hash, run id: checked by the recipe on resume


def save(
    path: Path, adapter: Adapter, optimizer: torch.optim.Optimizer, best: dict[str, Tensor], progress: Progress
) -> None:
    """Write beside the target, flush to disk, rename. Raises RunFailed if that fails; the file that was there is
    kept."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in adapter.tensors().items():
        state = optimizer.state[parameter]
        tensors |= {f"value/{name}": parameter.detach(), f"best/{name}": best[name]}
        tensors |= {f"{moment}/{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in state}
    scalars = {"progress": json.dumps(asdict(progress))}
    try:
        with replaced(path) as fresh:
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, fresh, metadata=scalars)
            with fresh.open("rb+") as file:  # as Windows wants it
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"{path}: checkpoint could not be saved ({error}); the one before it is kept") from error


def read_progress(path: Path) -> Progress:
    """The scalars alone."""
    try:
        with safe_open(path, framework="pt") as file:
            return Progress(**json.loads(file.metadata()["progress"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); delete it to start over") from error


def restore(path: Path, adapter: Adapter, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Progress]:
    """Load parameters and moments in place; returns the best parameters so far and the scalars."""
    progress = read_progress(path)
    best: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name, parameter in adapter.tensors().items():
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"value/{name}"))
            best[name] = file.get_tensor(f"best/{name}").to(parameter.device)
            moments = {m: file.get_tensor(f"{m}/{name}").to(parameter.device) for m in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(progress.step)), **moments}
    return best, progress
