"""The state of a training run in one safetensors file, replaced atomically: a kill or a full disk leaves the last good
one.

Tensors: parameters, their running mean, both AdamW moments, the best so far. The file's metadata holds the scalars as
JSON. The order of the training windows is a function of (seed, epoch), so no random state needs saving and a resumed
run repeats the uninterrupted one bit for bit.
"""

import json
import os
from collections.abc import Iterator, Sequence
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
from qrun.foreign import brief, read_header, typed

PARTS = ("value", "best", "mean", "exp_avg", "exp_avg_sq")  # tensors of each parameter
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
ROW = {"step", "loss", "cross_entropy", "gradient_norm", "lr"}
OVER = "delete it to start over"


@dataclass
class Progress:
    """Scalars of a training run; `history` has a row per step, `evaluations` one per validation."""

    step: int = 0
    best_nats: float = float("inf")
    best_step: int = 0
    seconds: float = 0.0  # of the steps, without validation
    history: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # config hash, run id: checked by the recipe on resume


def save(
    path: Path, adapter: Adapter, optimizer: torch.optim.Optimizer, best: dict[str, Tensor], means: Sequence[Tensor],
    progress: Progress,
) -> None:  # fmt: skip
    """Write beside the target, flush to disk, rename. Raises RunFailed if that fails; the file that was there is
    kept."""
    tensors: dict[str, Tensor] = {}
    for (name, parameter), mean in zip(adapter.tensors().items(), means, strict=True):
        state = optimizer.state[parameter]
        moments = [state.get(moment, torch.zeros_like(parameter)) for moment in PARTS[3:]]  # none yet: no gradient
        own = (parameter.detach(), best[name], mean, *moments)
        tensors |= {f"{part}/{name}": value for part, value in zip(PARTS, own, strict=True)}
    scalars = {"progress": json.dumps(asdict(progress))}
    try:
        with replaced(path) as fresh:
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, fresh, metadata=scalars)
            with fresh.open("rb+") as file:  # as Windows wants it
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"{path}: checkpoint could not be saved ({error}); the one before it is kept") from error


def read_progress(path: Path) -> Progress:
    """The scalars alone. Raises InputError for a file that cannot be read or is not a training's."""
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["progress"]
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); {OVER}") from error
    progress = typed(Progress, text, path)
    steps, ends = progress.history, progress.evaluations
    whole = len(steps) == progress.step > 0 and all(row.keys() >= ROW for row in steps)
    if not whole or not ends or not all(row.keys() >= {"step", "validation_nats"} for row in ends):
        raise InputError(f"{path}: its history is not that of step {progress.step}; {OVER}")
    return progress


def restore(
    path: Path, adapter: Adapter, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[Tensor], Progress]:
    """Load parameters and moments in place; returns the best parameters so far, the running means and the scalars.
    Raises InputError for a file whose tensors are not those of the adapter's training; nothing is loaded then."""
    progress = read_progress(path)
    parameters = adapter.tensors()
    stored = {name: f"{tensor.dtype} {brief(tensor.shape)}" for name, tensor in read_header(path).items()}
    for name, parameter in parameters.items():
        needed = f"{TYPES[parameter.dtype]} {list(parameter.shape)}"
        for part in PARTS:
            if (found := stored.get(f"{part}/{name}", "nothing")) != needed:
                raise InputError(f"{path}: {part}/{name}: {found} there, {needed} in the adapter; {OVER}")
    best: dict[str, Tensor] = {}
    means = []
    with safe_open(path, framework="pt") as file:
        for name, parameter in parameters.items():
            value, best[name], mean, *moments = _read(file, name, parameter)
            means.append(mean)
            with torch.no_grad():
                parameter.copy_(value)
            step = torch.tensor(float(progress.step))
            optimizer.state[parameter] = {"step": step, **dict(zip(PARTS[3:], moments, strict=True))}
    return best, means, progress


def _read(file: Any, name: str, parameter: Tensor) -> Iterator[Tensor]:
    for part in PARTS:
        yield file.get_tensor(f"{part}/{name}").to(parameter.device)
