"""What can be told from the words alone, before anything heavy is imported."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from qrun.adapters.methods import spec
from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.sites import select, sites
from qrun.config.devices import DeviceConfig
from qrun.config.schema import AdapterConfig, ModelConfig
from qrun.config.verbs import RunConfig
from qrun.errors import InputError
from qrun.language.intake import regular
from qrun.language.models import model_shape

if TYPE_CHECKING:
    from qrun.quantum.synthesis import Ansatz


def check_sites(model: ModelConfig, adapter: AdapterConfig) -> None:
    """Sites and block dimension, where the model's shape is known without its weights."""
    shape = model_shape(model)
    if shape is not None:
        spec(adapter.method).check(adapter, select(sites(shape), adapter.projections, adapter.layers))


def check_run(run: RunConfig, context: int | None = None) -> None:
    """Where a run reads and writes; windows of measuring and, with `context`, of training, where the model's positions
    are known without it."""
    if run.data.path is not None and not Path(run.data.path).is_dir():
        regular(Path(run.data.path), "data.path")
    check_results(run.results)
    shape = model_shape(run.model)
    given = {"protocol.ctx": run.protocol.ctx, "training.context": context}
    long = [f"{key}={size}" for key, size in given.items() if shape and size and size > shape.max_position_embeddings]
    if shape and long:
        raise InputError(f"{' and '.join(long)}: the model has {shape.max_position_embeddings} positions")


def check_results(results: str) -> None:
    """That a folder could be written; it is not made yet."""
    try:
        folder = Path(results).expanduser().resolve()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        why = "" if there.is_dir() and os.access(there, os.W_OK) else f"{there} is no folder that can be written"
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        raise InputError(f"results={results}: {why}; choose another folder with results=...")


def check_adapter(path: str | None) -> None:
    """A saved adapter is a folder."""
    if path is not None and not os.path.isdir(os.path.expanduser(path)):
        raise InputError(f"adapter.path={path}: no such folder; give one written by `qrun train` or by PEFT")


def check_device(model: ModelConfig, device: DeviceConfig, adapter: str | None) -> None:
    """A device runs circuits, so there must be an adapter."""
    check_adapter(adapter)
    model_shape(model)
    if device.kind != "exact" and not adapter:
        how = "give adapter.path=<folder written by `qrun train`>"
        raise InputError(f"device={device.kind}: no adapter to run there; {how}")


def own_ansatz(adapter: AdapterConfig) -> "Ansatz | None":
    """The order of gates of an adapter whose blocks are circuits already, of so many CZ; torch is imported for those
    only."""
    method = spec(adapter.method)
    if not isinstance(method, BlockMethod) or "czs" not in method.options:
        return None
    return method.form(adapter, "").shape(adapter.dim)
