"""Models and texts that a process has opened, each once; the model that was not asked for longest makes room."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from qrun.adapters.linear import Adapter
from qrun.cells.keys import Sources
from qrun.config.compose import to_yaml
from qrun.config.schema import CacheConfig, DataConfig, EvaluationConfig, ModelConfig, ProtocolConfig
from qrun.evaluation.perplexity import fed, pools
from qrun.evaluation.protocols import Task, check_ids, stated
from qrun.evaluation.trunk import Trunk, digest, open_trunk
from qrun.language import models
from qrun.language.corpus import Corpus
from qrun.language.models import LanguageModel
from qrun.language.tokens import stream
from qrun.report.screen import say
from qrun.training.loop import training_windows

MODELS = 3  # kept open at once: a study over compressed models would else fill the memory with them
EVERYTHING = 2**62  # tokens
SAME = ("weights", "config", "quantization")  # what kept hidden states are of


class Measurable(Protocol):
    """A config that says what is measured."""

    model: ModelConfig
    data: DataConfig
    protocol: ProtocolConfig
    evaluation: EvaluationConfig
    cache: CacheConfig


@dataclass
class Opened:
    """A loaded model, its text and the measurement to make of it."""

    language: LanguageModel
    corpus: Corpus
    task: Task

    windows: dict[int, Tensor] = field(default_factory=dict)  # training windows by context
    trunks: dict[str, Trunk | None] = field(default_factory=dict)
    neutral: dict[str, float] = field(default_factory=dict)  # nats per token of the frozen model, by validation

    def more(self, config: Measurable, tokens: int) -> "Opened | None":
        """The same, to be measured on passages of so many tokens, or of the next doubling with a passage more, but for
        those that this one has; None where the text has no more."""
        had, looks = len(self.task.rows()), self.task.statement["looks"] + 1

        def further(most: int) -> Task:
            own = replace(config.evaluation, max_tokens=most)
            return stated(self.language, self.corpus, config.model, config.protocol, own)

        task = further(tokens)
        if len(task.rows()) <= had and len(further(EVERYTHING).rows()) == had:
            return None
        while len(task.rows()) <= had:
            tokens *= 2
            task = further(tokens)
        return replace(self, task=replace(task, first=had, statement={**task.statement, "looks": looks}))

    def trunk_of(self, task: Task, batch: int, adapter: Adapter | None, gib: float) -> Trunk | None:
        """Where the frozen layers' states of a task's windows are kept."""
        batches = [windows for pool in pools(task, batch) for windows in pool]
        texts, rows = [fed(b)[:, :-1] for b in batches], [p.row for p in batches[0]]
        return self.trunk(texts, rows, sum(map(len, batches)), batch, adapter, gib)

    def trunk(
        self, texts: Sequence[Tensor], rows: Sequence[int], visited: int, batch: int, adapter: Adapter | None,
        gib: float,
    ) -> Trunk | None:  # fmt: skip
        """Hidden states of windows [.., T], so many of which are `visited`, below the first layer of `adapter`, kept;
        `rows` are the numbers of the first batch. None where no layer is below, nothing is to be kept, or what is kept
        would not be the same bit for bit."""
        # accelerate holds each layer's forward pass of a model on several devices
        spread = len(set(getattr(self.language.model, "hf_device_map", {"": 0}).values())) > 1
        if adapter is None or not adapter.first_layer or not gib or spread:
            return None
        model, layer = self.language.model, adapter.first_layer
        same = [self.language.identity[part] for part in SAME if part in self.language.identity]
        key = digest(model, layer, [*same, batch], texts)
        if key not in self.trunks:
            size = visited, max(ids.shape[1] for ids in texts)
            trunk = open_trunk(model, layer, key, size, gib, say)
            with adapter.disabled():
                if trunk and not trunk.agrees(model, texts[0][: len(rows)].to(model.device), rows):
                    say("kept hidden states give other bits than the model here, so they are computed each time")
                    trunk = None
            self.trunks[key] = trunk
        return self.trunks[key]

    def training_windows(self, context: int) -> Tensor:
        """Windows [count, context] of the training split, tokenised once."""
        if context not in self.windows:
            text = stream(self.language.tokenizer, self.corpus.splits["train"], self.corpus.wikitext)
            check_ids(self.language.model, text.ids)
            self.windows[context] = training_windows(torch.from_numpy(text.ids), context)
        return self.windows[context]


class Workspace:
    """Everything opened in this process."""

    def __init__(self, sources: Sources | None = None) -> None:
        self.sources = sources or Sources()
        self._models: dict[str, LanguageModel] = {}
        self._opened: dict[str, Opened] = {}

    def model(self, config: ModelConfig) -> LanguageModel:
        """Load a model, frozen. It is then the youngest of those kept."""
        key = to_yaml(config)
        language = self._models.pop(key, None)
        if language is None:
            language = models.load(config)
            kind = f"{config.dtype.value}{f' and {config.quantization.value}' if config.quantization else ''}"
            say(f"model {config.name}: {language.model.num_parameters():,} parameters, {kind} on {language.device}")
        self._models[key] = language
        while len(self._models) > MODELS:
            gone = self._models.pop(next(iter(self._models)))
            self._opened = {k: opened for k, opened in self._opened.items() if opened.language is not gone}
        return language

    def open(self, config: Measurable) -> Opened:
        """Load model and text and state the task. Every InputError about them is raised here, before anything is
        recorded."""
        key = "".join(to_yaml(part) for part in (config.model, config.data, config.protocol, config.evaluation))
        language = self.model(config.model)
        if key not in self._opened:
            text = self.sources.text(config.data)
            task = stated(language, text, config.model, config.protocol, config.evaluation)
            sizes = ", ".join(f"{split} {len(documents):,}" for split, documents in text.splits.items())
            scored = f"{task.scored:,} tokens scored, protocol {task.statement['protocol']} {task.fingerprint}"
            say(f"data {text.name}: {sizes} documents{f' ({text.told})' if text.told else ''}; {scored}")
            if config.model.embedded:
                say(f"data {text.name}: {text.overlap()}")
            self._opened[key] = Opened(language, text, task)
        return self._opened[key]
