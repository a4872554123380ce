"""Five functions for notebooks: what the commands do, on a model that stays open.

    import qrun

    model = qrun.load_model("nano")
    qrun.attach(model, dim=8, projections=["v_proj"])
    trained = qrun.train(model, steps=20)                               as `qrun train`
    found = qrun.evaluate(model, device="noisy", noise="heron_r2")      as `qrun eval perplexity`
    qrun.results()                                                      a row per run and cell of results/

Keyword arguments are the words of the config: those of one group by their own names (`dim` is adapter.dim in `attach`),
groups and keys of the whole command by theirs (`data="pydoc"`, `evaluation={"max_tokens": 600}`). Words as they are
typed, "adapter.dim=8", can be given too. The numbers are those of the command with the same words. A wrong word raises
errors.InputError, in one line.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qrun.adapters.linear import Adapter, detach
from qrun.adapters.methods import spec
from qrun.adapters.saving import read
from qrun.adapters.sites import adapted
from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.config.schema import AdapterConfig, ModelConfig, SavedAdapterConfig
from qrun.config.tree import options
from qrun.config.verbs import PerplexityConfig, TrainConfig
from qrun.config.words import spelled
from qrun.errors import InputError
from qrun.files import at_home
from qrun.language.models import LanguageModel
from qrun.recipes.measuring import attach_saved
from qrun.recipes.perplexity import Measured, measure_in
from qrun.recipes.train import Trained, train_in
from qrun.tracking.store import Store

__all__ = ["Measured", "Model", "Trained", "attach", "evaluate", "load_model", "results", "train"]
CURVES = ("train/", "validation/", "system/")  # metrics of a table have one value each


@dataclass
class Model:
    """A frozen language model, and the adapter in it, if there is one."""

    config: ModelConfig
    language: LanguageModel = field(repr=False)
    workspace: Workspace = field(repr=False)  # the model's texts, opened once
    adapter: Adapter | None = field(default=None, repr=False)
    folder: Path | None = None  # where the adapter was saved or read

    @property
    def model(self) -> Any:
        """The transformers model, adapter included: generate() and all else that it can do."""
        return self.language.model

    @property
    def tokenizer(self) -> Any:
        """Its transformers tokenizer."""
        return self.language.tokenizer

    @property
    def sites(self) -> list[str]:
        """Names of the adapted projections."""
        return list(self.adapter.modules) if self.adapter else []

    @property
    def parameters(self) -> int:
        """Trained parameters of the adapter."""
        return self.adapter.count() if self.adapter else 0

    def detach(self) -> None:
        """Take the adapter out; the model is as it was loaded."""
        if self.adapter is not None:
            detach(self.model, self.adapter)
        self.adapter = self.folder = None

    def saved(self) -> Path | None:
        """The adapter's folder, if the folder still has what is in the model."""
        if self.adapter is None or self.folder is None:
            return None
        try:
            own, kept = self.adapter.snapshot(), read(self.folder).tensors
        except InputError:  # deleted meanwhile
            return None
        same = own.keys() == kept.keys() and all(torch.equal(own[name].cpu(), kept[name]) for name in own)
        return self.folder if same else None


def load_model(name: str | None = None, *words: str, **keys: object) -> Model:
    """Load a model and freeze it.

    `name` is an option of config group `model` (nano, smollm2, llama ...), `nano` if nothing is given, or `local` where
    `path` names a folder in the hub's layout. Keys are those of the group: path, dtype, device, revision. Raises
    InputError for a model that cannot be had.
    """
    option = name or ("local" if "path" in keys else "nano")
    config = compose("train", [f"model={option}", *_words("model", (), keys), *words]).model
    workspace = Workspace()
    return Model(config, workspace.model(config), workspace)


def attach(model: Model, method: str = "cayley", *words: str, path: str | Path | None = None, **keys: object) -> Model:
    """Put an adapter into the model, in place of the one that is there; returns the same model.

    `method` is an option of config group `adapter` (cayley, circuit, lora, oft ...); it starts as the identity. Keys
    are those of the group: dim (block dimension b), projections (all, attention, mlp or a list such as ["v_proj"]),
    layers (all, first, last, "2-5", a list), side, rank, options. With `path`, a saved adapter instead. Raises
    InputError if it does not fit the model.
    """
    if path is not None:
        if words or keys or method != "cayley":
            raise InputError("attach: path brings the saved adapter's own words; give path alone")
        saved = read(folder := Path(at_home(str(path))))
        model.detach()
        model.adapter, model.folder = attach_saved(model.language, saved, path), folder
        return model
    config = compose("train", [f"adapter={method}", *_words("adapter", (), keys), *words]).adapter
    model.adapter = _attached(model, config)
    return model


def train(model: Model, *words: str, resume: bool = False, **keys: object) -> Trained:
    """Train the attached adapter, from its start, and measure perplexity before and after, as `qrun train` does.

    Keys are those of config group `training` (steps, lr, batch, context, ...), and data, protocol, evaluation, training
    (an option), seed, results (folder of the store) and name of the run. The trained adapter is then in the model.
    Raises InputError for wrong words, RunFailed for a training that diverges.
    """
    adapter = model.adapter
    if adapter is None:
        raise InputError('train: the model has no adapter; attach(model, dim=8) or attach(model, "lora") puts one in')
    composed = _composed("train", "training", TrainConfig, words, keys)
    config = replace(composed, model=model.config, adapter=adapter.config)
    before, folder = adapter.snapshot(), model.folder
    model.detach()
    try:
        trained = train_in(model.workspace, config, resume)
        attach(model, path=trained.folder)
    except BaseException:  # what was in the model goes back
        model.adapter, model.folder = _attached(model, adapter.config), folder
        model.adapter.load(before)
        raise
    return trained


def evaluate(model: Model, *words: str, **keys: object) -> Measured:
    """Perplexity of the frozen model, with its adapter, and on a device, as `qrun eval perplexity` does.

    Keys are those of config group `device` (shots, backend ...), and device, circuit, noise, estimate, signs, data,
    protocol, evaluation, seed, results and name. Raises InputError for wrong words and combinations.
    """
    config = _composed("perplexity", "device", PerplexityConfig, words, keys)
    if config.device.kind != "exact" and model.adapter is None:
        raise InputError(f"device={config.device.kind}: no adapter to run there; attach(model, ...) puts one in")
    folder = model.saved()
    config = replace(config, model=model.config, adapter=SavedAdapterConfig(str(folder) if folder else None))
    return measure_in(model.workspace.open(config), model.adapter, config)


def results(folder: str | Path = "results", tracking_uri: str | None = None) -> pd.DataFrame:
    """A row per run and cell of a results folder or a tracking server, the newest first: verb, run, status, start, then
    parameters of its config, metrics and tags by their names. Raises InputError if there is no store."""
    rows = []
    for verb, runs in Store(at_home(str(folder)), tracking_uri).runs().items():
        for run in runs:
            started = pd.Timestamp(run.started, unit="s").floor("ms")
            head = {
                "verb": verb, "run": run.name, "status": run.status, "started": started, "wall_seconds": run.seconds,
                "run_id": run.run_id,
            }  # fmt: skip
            params = {name: None if value == "None" else value for name, value in run.params.items()}
            metrics = {name: value for name, value in run.metrics.items() if not name.startswith(CURVES)}
            tags = {name: value for name, value in run.tags.items() if not name.startswith("mlflow.")}
            rows.append({**tags, **metrics, **params, **head})
    order = ["verb", "run", "status", "started", "wall_seconds"]
    table = pd.DataFrame(rows).sort_values("started", ascending=False, ignore_index=True)
    table = table[[*order, *sorted(name for name in table if name not in order)]]
    for name in table.columns.difference(order):
        try:
            table[name] = pd.to_numeric(table[name])
        except (ValueError, TypeError):  # words
            continue
    return table


def _attached(model: Model, config: AdapterConfig) -> Adapter:
    """A new adapter in the model; one that does not fit is refused before the old one is taken out."""
    language, method = model.language, spec(config.method)
    selected = adapted(language.shape, config)
    method.check(config, selected)
    model.detach()
    return method.attach(language.model, selected, config, language.identity["path"])


def _composed(verb: str, group: str, schema: type, words: Iterable[str], keys: Mapping[str, object]) -> Any:
    """The verb's config but for model and adapter, which are given already."""
    given = [*_words(group, [f.name for f in fields(schema)], keys), *words]
    for word in given:
        if word.partition("=")[0].partition(".")[0] in ("model", "adapter", "experiment"):
            raise InputError(f"{word}: load_model says which model, attach which adapter")
    return compose(verb, given)


def _words(group: str, top: Iterable[str], keys: Mapping[str, object]) -> list[str]:
    """Keywords as typed words: an option of a group, keys of the whole config (`top`), else keys of `group`."""
    words = []
    for key, value in keys.items():
        whole = key in top or (bool(top) and key in options())
        if isinstance(value, Mapping):
            words += [f"{key if whole else f'{group}.{key}'}.{name}={spelled(one)}" for name, one in value.items()]
        elif whole and key in options():
            words.append(f"{key}={value}")
        else:
            words.append(f"{key if whole else f'{group}.{key}'}={spelled(value)}")
    return words
