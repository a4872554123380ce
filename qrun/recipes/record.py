"""What the recipes share: opening a model with its text, timing a measurement, and the record that every run leaves."""

import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qrun.adapters.controls import attach_method
from qrun.adapters.linear import Adapter, detach
from qrun.adapters.saving import SavedAdapter
from qrun.adapters.sites import sites
from qrun.config.compose import config_hash, flatten, plain, to_yaml
from qrun.config.schema import DataConfig, ModelConfig
from qrun.config.verbs import RunConfig
from qrun.errors import InputError
from qrun.evaluation.perplexity import Difference, Measurement, measure
from qrun.evaluation.protocols import Task
from qrun.language.corpus import Corpus
from qrun.language.models import LanguageModel
from qrun.language.tokens import stream
from qrun.report.screen import bar, say, table
from qrun.tracking.provenance import environment, git_state
from qrun.tracking.store import Run, Store
from qrun.training.loop import training_windows


@dataclass
class Opened:
    """A loaded model, its text and the measurement to make of it."""

    language: LanguageModel
    corpus: Corpus
    task: Task
    base: Measurement | None = None  # of the frozen model on the task, once measured
    windows: dict[int, Tensor] = field(default_factory=dict)  # training windows by context

    def training_windows(self, context: int) -> Tensor:
        """Windows [count, context] of the training split, tokenised once."""
        if context not in self.windows:
            text = stream(self.language.tokenizer, self.corpus.splits["train"], self.corpus.wikitext)
            self.windows[context] = training_windows(torch.from_numpy(text.ids), context)
        return self.windows[context]


MODELS = 3  # kept open at once: a study over compressed models would else fill the memory with them


class Shelf:
    """Models, texts and what was opened of both, each once per process.

    The model that was not asked for longest makes room.
    """

    def __init__(self) -> None:
        self._models: dict[str, LanguageModel] = {}
        self._texts: dict[str, Corpus] = {}
        self._opened: dict[str, Opened] = {}

    def model(self, config: ModelConfig) -> LanguageModel:
        """Load a model, frozen."""
        from qrun.language import models

        key = to_yaml(config)
        if key in self._models:
            self._models[key] = self._models.pop(key)  # now the youngest
            return self._models[key]
        language = models.load(config)
        count = sum(p.numel() for p in language.model.parameters())
        say(f"model {config.name}: {count:,} parameters, {config.dtype.value} on {language.device}")
        self._models[key] = language
        while len(self._models) > MODELS:
            gone = self._models.pop(next(iter(self._models)))
            self._opened = {k: opened for k, opened in self._opened.items() if opened.language is not gone}
        return language

    def text(self, config: DataConfig) -> Corpus:
        """Load a corpus."""
        from qrun.language import corpus

        key = to_yaml(config)
        if key not in self._texts:
            self._texts[key] = corpus.load(config)
        return self._texts[key]

    def open(self, config: RunConfig) -> Opened:
        """Load model and text and state the task.

        Every InputError about them is raised here, before anything is recorded.
        """
        from qrun.evaluation.protocols import build

        key = "".join(to_yaml(part) for part in (config.model, config.data, config.protocol, config.evaluation))
        if key not in self._opened:
            language, text = self.model(config.model), self.text(config.data)
            task = build(
                config.protocol, config.evaluation, text, language.tokenizer, language.shape.max_position_embeddings
            )
            sizes = ", ".join(f"{split} {len(documents):,}" for split, documents in text.splits.items())
            say(
                f"data {text.name}: {sizes} documents; {task.scored:,} tokens scored, protocol "
                f"{task.statement['protocol']} {task.fingerprint}"
            )
            self._opened[key] = Opened(language, text, task)
        self.model(config.model)
        return self._opened[key]


def attach_saved(language: LanguageModel, saved: SavedAdapter, path: str | Path) -> Adapter:
    """Put a saved adapter into the model it was trained in; InputError for any other model."""
    if saved.base["weights"] != language.identity["weights"]:
        raise InputError(
            f"adapter.path={path}: trained in {saved.base['name']} (weights {saved.base['weights']}), not in "
            f"model={language.identity['name']} "
            f"(weights {language.identity['weights']})"
        )
    selected = [site for site in sites(language.shape) if site.name in saved.sites]
    adapter = attach_method(language.model, selected, saved.config, language.identity["path"])
    if set(adapter.tensors()) != set(saved.tensors):
        detach(language.model, adapter)
        raise InputError(
            f"adapter.path={path}: its tensors are not those of method {saved.config.method.value} at these sites"
        )
    adapter.load(saved.tensors)
    return adapter


def measured(title: str, model: Any, task: Task, batch: int) -> Measurement:
    """`measure` behind a progress bar."""
    with bar(title, task.scored, "tokens") as advance:
        result = measure(model, task, batch, lambda tokens: advance(tokens, ""))
        advance(0, f"perplexity {result.perplexity:.3f}")
    return result


def tags(config: RunConfig, opened: Opened) -> dict[str, Any]:
    """What identifies a number beside its parameters."""
    language, task, code = opened.language, opened.task, git_state()
    return {
        **code, "mlflow.source.name": " ".join(["qrun", *sys.argv[1:]]), "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": code["git_sha"],
        "config_hash": config_hash(config), "protocol": task.statement["protocol"],
        "protocol_fingerprint": task.fingerprint,
        "model_revision": language.identity["revision"], "model_weights": language.identity["weights"],
        "data_source": opened.corpus.source,
        "data_digest": task.statement["data_digest"], "compute": str(language.device), **device_tags(config),
        "seed": config.seed,
    }  # fmt: skip


def device_tags(config: Any) -> dict[str, Any]:
    """Device, shots and dated noise of a run that has a device."""
    device, noise = getattr(config, "device", None), getattr(config, "noise", None)
    if device is None or noise is None or device.kind == "exact":
        return {"device": "exact"}
    return {
        "device": device.kind,
        "shots": device.shots,
        "noise": noise.name,
        "noise_factor": noise.factor,
        "noise_date": noise.date,
    }


def open_record(run: Run, config: RunConfig, opened: Opened) -> None:
    """Config, environment, protocol and dataset inputs: written when a run starts."""
    run.text(to_yaml(config), "config.yaml")
    run.json(environment(), "env.json")
    run.json(opened.task.statement, "protocol.json")
    for split, digest in opened.corpus.digests.items():
        run.dataset(f"{opened.corpus.name}-{split}", digest, opened.corpus.source, split)


def flat_params(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in flatten(plain(config)).items() if key not in ("results", "name")}


def record_measurements(run: Run, results: dict[str, Measurement], gain: Difference | None) -> None:
    """Perplexities per document as artifacts, their totals as metrics."""
    for name, result in results.items():
        run.text(result.to_json(), f"perplexity_{name}.json")
        run.metrics(
            {
                f"{name}/perplexity": result.perplexity,
                f"{name}/bits_per_byte": result.bits_per_byte,
                f"{name}/seconds": result.seconds,
            }
        )
    if gain is not None:
        values = {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
        run.metrics({key: value for key, value in values.items() if value == value})
        interval = (
            f", 95% interval {gain.low:.3f} to {gain.high:.3f} over {gain.units} {gain.unit}"
            if gain.low == gain.low
            else ""
        )
        base, adapted = next(iter(results.values())), list(results.values())[-1]
        run.note(
            f"{base.statement['unit']} perplexity {base.perplexity:.3f} to **{adapted.perplexity:.3f}**: gain "
            f"{gain.value:+.3f}{interval}"
        )
    run.metrics({"peak_memory_mb": peak_memory_mb()})


def documents_interval(
    store: Store, first: list[str], second: list[str], which: tuple[str, str], resamples: int, seed: int
) -> tuple[float, float]:
    """95 % interval over documents of PPL_first - PPL_second, the log-likelihoods of each averaged over seeds (run
    ids, in the order of the seeds)."""
    from qrun.evaluation.intervals import paired_interval

    sides = []
    for runs, name in zip((first, second), which, strict=True):
        sides.append([Measurement.from_json(store.artifact_text(run, f"perplexity_{name}.json")) for run in runs])
    a, b = (np.mean([m.nats for m in side], axis=0) for side in sides)
    return paired_interval(a, b, np.array(sides[0][0].normaliser), resamples, seed)


def peak_memory_mb() -> float:
    """Peak resident memory of this process (kilobytes on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def result_table(
    title: str,
    results: dict[str, Measurement],
    gain: Difference | None,
    caption: str,
    penalty: Difference | None = None,
) -> None:
    """The small table at the end of a run."""
    unit = next(iter(results.values())).statement["unit"]
    rows = [[name, f"{r.perplexity:.3f}", f"{r.bits_per_byte:.4f}"] for name, r in results.items()]
    for label, gap in (("penalty of the device", penalty), ("gain", gain)):
        if gap is not None:
            interval = f"95% [{gap.low:.3f}, {gap.high:.3f}]" if gap.low == gap.low else "no interval: one document"
            rows.append([label, f"{gap.value:+.3f}", interval])
    table(title, ["", f"{unit} perplexity", "bits per byte"], rows, caption)
