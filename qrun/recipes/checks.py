"""What can be told from the words alone, before anything heavy is imported."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qrun.adapters.methods import spec
from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.sites import select, sites
from qrun.config.devices import DeviceConfig
from qrun.config.schema import AdapterConfig, ModelConfig
from qrun.errors import InputError
from qrun.language.models import model_shape

if TYPE_CHECKING:
    from qrun.quantum.synthesis import Ansatz


def check_sites(model: ModelConfig, adapter: AdapterConfig) -> None:
    """Sites and block dimension, where the model's shape is known without its weights."""
    shape = model_shape(model)
    if shape is not None:
        spec(adapter.method).check(adapter, select(sites(shape), adapter.projections, adapter.layers))


def check_device(model: ModelConfig, device: DeviceConfig, adapter: str | None) -> None:
    """A device runs circuits, so there must be an adapter."""
    model_shape(model)
    if device.kind != "exact" and not adapter:
        how = "give adapter.path=<folder written by `qrun train`>"
        raise InputError(f"device={device.kind}: no adapter to run there; {how}")


def check_out(out: str) -> None:
    """`--out` is a new folder that can be written."""
    target = Path(os.path.abspath(Path(out).expanduser()))
    if os.path.lexists(target):
        raise InputError(f"--out {out}: exists already; name a new folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: not writable ({error.strerror or error}); name another folder") from error


def own_ansatz(adapter: AdapterConfig) -> "Ansatz | None":
    """The order of gates of an adapter whose blocks are circuits already, of so many CZ; torch is imported for those
    only."""
    method = spec(adapter.method)
    if not isinstance(method, BlockMethod) or "czs" not in method.options:
        return None
    return method.form(adapter, "").shape(adapter.dim)
