"""What can be told from the words alone, before anything heavy is imported."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qrun.adapters.methods import spec
from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.sites import adapted
from qrun.config.devices import DeviceConfig
from qrun.config.schema import AdapterConfig, ModelConfig
from qrun.config.verbs import GenerateConfig, QuestionsRunConfig, RunConfig, TrainConfig
from qrun.errors import InputError
from qrun.foreign import read_json
from qrun.language.intake import regular
from qrun.language.models import check_model, model_shape

if TYPE_CHECKING:
    from qrun.quantum.synthesis import Ansatz


def check_sites(model: ModelConfig, adapter: AdapterConfig) -> None:
    """Sites and block dimension, where the model's shape is known without its weights."""
    shape = check_model(model)
    if shape is not None:
        spec(adapter.method).check(adapter, adapted(shape, adapter))


def check_run(run: RunConfig) -> None:
    """Where a run reads and writes, and its lengths."""
    if run.data.path is not None and not os.path.isdir(run.data.path):
        regular(Path(run.data.path), "data.path")
    check_results(run.results)
    check_lengths(run)


def check_results(results: str) -> None:
    """That a folder could be written; it is not made yet."""
    try:
        folder = Path(results).resolve()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        why = "" if there.is_dir() and os.access(there, os.W_OK) else f"{there} is no folder that can be written"
        why = "this machine has no such user" if results.startswith("~") else why  # ~ of those it has is written out
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        raise InputError(f"results={results}: {why}; choose another folder with results=...")


def check_adapter(path: str | None) -> None:
    """A saved adapter is a folder."""
    if path is not None and not os.path.isdir(path):
        raise InputError(f"adapter.path={path}: no such folder; give one written by `qrun train` or by PEFT")


def check_device(model: ModelConfig, device: DeviceConfig, adapter: str | None) -> None:
    """A device runs circuits, so there must be an adapter."""
    check_adapter(adapter)
    check_model(model)
    if device.kind != "exact" and not adapter:
        how = "give adapter.path=<folder written by `qrun train`>"
        raise InputError(f"device.kind={device.kind}: no adapter to run there; {how}")


def check_lengths(config: RunConfig | GenerateConfig) -> None:
    """Windows against the model's positions, and a teacher's vocabulary against the model's, where they are known."""
    shape = model_shape(config.model)
    if shape is None:
        return
    lengths = {"tokens": config.tokens} if isinstance(config, GenerateConfig) else {"protocol.ctx": config.protocol.ctx}
    if isinstance(config, TrainConfig):
        lengths["training.context"] = config.training.context
        taught = check_model(config.teacher) if config.teacher and config.training.distill_weight else None
        if taught is not None and config.teacher and taught.vocab_size != shape.vocab_size:
            why = f"its vocabulary is not that of model={config.model.name}"
            raise InputError(f"model@teacher={config.teacher.name}: {why}")
    long = [f"{key}={size}" for key, size in lengths.items() if size and size > shape.max_position_embeddings]
    if long:
        raise InputError(f"{' and '.join(long)}: the model has {shape.max_position_embeddings} positions")


def check_out(out: str) -> None:
    """`--out` is a new folder that can be written."""
    try:
        target = Path(os.path.abspath(out))
        if os.path.lexists(target):
            raise InputError(f"--out {out}: exists already; name a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: not writable ({error.strerror}); name another folder") from error


def own_ansatz(adapter: AdapterConfig) -> "Ansatz | None":
    """The order of gates of an adapter whose blocks are circuits already, of so many CZ; torch is imported for those
    only."""
    method = spec(adapter.method)
    if not isinstance(method, BlockMethod) or "czs" not in method.options:
        return None
    return method.form(adapter, "").shape(adapter.dim)


def check_unseen(run: QuestionsRunConfig) -> None:
    """Continuations are cut from documents that an adapter trained on data=pydoc has seen: half of them are in that
    text's training split."""
    path = Path(run.adapter.path or "") / "qrun.json"
    if run.questions.source != "continuation" or run.adapter.path is None or not path.is_file():
        return
    facts = read_json(path).get("facts")
    if isinstance(facts, dict) and facts.get("data") == "pydoc":
        why = "trained on data=pydoc, which has documents that questions=continuation asks about"
        raise InputError(f"adapter.path={run.adapter.path}: {why}; train it on data=pydoc_clean")
