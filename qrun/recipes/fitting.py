"""Training an adapter in an opened model: check, resume, fit. `qrun train` and the training cells of studies share it.

with prepared(config, workspace) as job:        everything that can be wrong is told here
    progress, run_id = resume(job, ...)         an unfinished checkpoint of this very training
    fit_adapter(job, ...)                       the best parameters by validation are in the model's adapter
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qrun.adapters.diagnostics import describe, on_text
from qrun.adapters.linear import Adapter, detach
from qrun.adapters.methods import spec
from qrun.adapters.sites import Site, adapted
from qrun.cells.workspace import Opened, Workspace
from qrun.config.compose import config_hash, plain
from qrun.config.schema import EvaluationConfig, ProtocolConfig, Split
from qrun.config.verbs import TrainConfig
from qrun.errors import InputError
from qrun.evaluation.intervals import effective_number
from qrun.evaluation.measurement import Measurement
from qrun.evaluation.perplexity import measure
from qrun.evaluation.protocols import Task, build, check_ids
from qrun.evaluation.trunk import Trunk
from qrun.report.screen import bar, say
from qrun.tracking.runs import Run
from qrun.tracking.store import Store
from qrun.training.checkpoint import Progress, read_progress
from qrun.training.interrupt import Interrupt
from qrun.training.loop import at_cap, fit
from qrun.training.losses import Teacher, frozen_teacher, teacher_of

LIVE_S, LIVE_STEPS = 2.0, 20  # curves grow no oftener than this: a request to a store far away takes its time
VALIDATION = "validation/nats"


@dataclass(frozen=True)
class Job:
    """One training, opened and checked, its adapter attached to the model."""

    config: TrainConfig
    opened: Opened
    adapter: Adapter
    sites: list[Site]
    windows: Tensor  # [count, context]
    validation: Task
    trunk: Trunk | None  # of the windows
    teacher: Teacher | None
    facts: dict[str, object]  # what a checkpoint must have been written with

    @property
    def label(self) -> str:
        """`b4`, `lora-r2`: what is trained."""
        return spec(self.config.adapter.method).label(self.config.adapter)


@contextmanager
def prepared(config: TrainConfig, workspace: Workspace, key: str | None = None) -> Iterator[Job]:
    """Open and check everything, attach the adapter, and leave the model as it was. A checkpoint must be of the same
    config, or of the same rate and cell `key`, which leaves out what changes no number."""
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.seed)
    opened = workspace.open(config)
    language, method = opened.language, spec(config.adapter.method)
    selected = adapted(language.shape, config.adapter)
    method.check(config.adapter, selected)
    validation = validation_task(config, opened)
    windows = opened.training_windows(config.training.context)
    original = None
    if config.teacher is not None and config.training.distill_weight and plain(config.teacher) != plain(config.model):
        original = workspace.model(config.teacher)
        if original.model.config.vocab_size != language.model.config.vocab_size:
            why = f"its vocabulary is not that of model={config.model.name}"
            raise InputError(f"model@teacher={config.teacher.name}: {why}")
    adapter = method.attach(language.model, selected, config.adapter, language.identity["path"])
    try:
        teacher = None
        if config.training.distill_weight:
            own = frozen_teacher(language.model, adapter)
            teacher = teacher_of(original.model) if original is not None else own
        own_words = {"cell_key": key, "lr": config.training.lr} if key else {"config_hash": config_hash(config)}
        facts: dict[str, object] = {**own_words, "data": opened.corpus.digests}
        facts |= {key: language.identity[key] for key in ("weights", "config", "tokenizer")}
        batch, gib, steps = config.training.batch, config.cache.gib, config.training.steps
        visited = min(len(windows), batch * (1 + steps * config.training.accumulation))
        trunk = opened.trunk([windows[:, :-1]], range(min(batch, len(windows))), visited, batch, adapter, gib)
        yield Job(config, opened, adapter, selected, windows, validation, trunk, teacher, facts)
    finally:
        detach(language.model, adapter)  # a failed cell must not leave its layers in the model that the next one uses


def validation_task(config: TrainConfig, opened: Opened) -> Task:
    """What chooses the checkpoint, and a rate: validation text, of `training.sample` (passages: no long document
    decides), in windows no longer than the protocol's."""
    context, positions = config.training.context, opened.language.shape.max_position_embeddings
    ctx = min(context, config.protocol.ctx or context)
    drawn = EvaluationConfig(Split.validation, config.training.sample, max_tokens=config.training.eval_tokens)
    words = (ProtocolConfig(ctx=ctx), drawn, opened.corpus, opened.language.tokenizer, positions)
    task = build(*words, config.model.dtype, config.model.quantization, key="training.context")
    for passage in task.passages:
        check_ids(opened.language.model, passage.stream.ids)
    return task


def resume(job: Job, state: Path, store: Store) -> tuple[Progress, str | None]:
    """Progress of an unfinished checkpoint and its run, which must be of this very training; else a fresh start."""
    if not state.is_file():
        return Progress(facts=dict(job.facts)), None
    progress = read_progress(state)
    changed = [key for key, value in job.facts.items() if progress.facts.get(key) != value]
    if changed:
        raise InputError(f"{state}: was written with another {' and '.join(changed)}; delete it to start over")
    say(f"resuming {state.parent.name} at step {progress.step} of {job.config.training.steps}")
    run_id = str(progress.facts.get("run_id"))
    return progress, run_id if store.exists(run_id) else None


def fit_adapter(
    job: Job, run: Run, state: Path, progress: Progress, interrupt: Interrupt,
    watch: Callable[[Progress], None] | None = None,
) -> Progress:  # fmt: skip
    """Train to the end, log the curve, or tell `watch` of each step instead; put the best parameters in place."""
    model, training = job.opened.language.model, job.config.training
    progress.facts = {**job.facts, "run_id": run.run_id}

    def validate() -> float:
        """Nats per token; those of an adapter that does nothing yet are the frozen model's, measured once."""
        own, neutral = job.opened.neutral, job.adapter.neutral()
        key = f"{job.validation.fingerprint} {job.config.evaluation.batch}"
        if neutral and key in own:
            return own[key]
        result = validated(job)
        nats = sum(result.nats) / sum(result.tokens)
        if neutral:
            own[key] = nats
        return nats

    expecting = job.adapter.expecting(training.kept)
    with bar("training", training.steps - progress.step, "steps") as advance, expecting:
        on_step = watch or _curve(run, progress.step > 0, interrupt, advance)
        best, progress = fit(
            model, job.adapter, job.windows, validate, training, job.config.seed, job.teacher, state, progress,
            on_step, interrupt, job.trunk,
        )  # fmt: skip
    job.adapter.load(best)
    return progress


def validated(job: Job) -> Measurement:
    """The model as it stands, on the job's validation text."""
    batch = job.config.evaluation.batch
    trunk = job.opened.trunk_of(job.validation, batch, job.adapter, job.config.cache.gib)
    return measure(job.opened.language.model, job.validation, batch, trunk=trunk)


def _curve(
    run: Run, resumed: bool, interrupt: Interrupt, advance: Callable[[int, str], None]
) -> Callable[[Progress], None]:
    """What happens after each step: the bar moves, and steps go to the run's curves in batches, while training runs. A
    killed run's log may end before its checkpoint or behind it: what is there is not logged again."""
    logged, validated = (run.last_step(key) if resumed else at for key, at in (("train/loss", 0), (VALIDATION, -1)))
    sent = time.monotonic()

    def on_step(now: Progress) -> None:
        nonlocal logged, validated, sent
        last = now.evaluations[-1]
        fresh = last["step"] == now.step > validated
        if now.step:
            loss = now.history[-1]["cross_entropy"]
            advance(1, f"loss {loss:.3f}  validation {last['validation_nats']:.4f} nats/token")
        due = now.step - logged >= LIVE_STEPS and time.monotonic() - sent >= LIVE_S
        if fresh or due or interrupt.received:
            named = [{f"train/{key}": value for key, value in row.items()} for row in now.history[logged:]]
            rows = [(int(row.pop("train/step")), row) for row in named]
            if fresh:
                rows.append((now.step, {VALIDATION: last["validation_nats"]}))
                validated = now.step
            run.series(rows)
            logged, sent = max(logged, now.step), time.monotonic()

    return on_step


def fit_metrics(job: Job, progress: Progress) -> dict[str, float]:
    """What a training leaves as metrics: size, steps, speed, and what the trained blocks look like."""
    training = job.config.training
    tokens = progress.step * training.batch * training.accumulation * (training.context - 1)
    found: dict[str, float] = {
        "parameters": job.adapter.count(), "sites": len(job.sites), "steps": progress.step,
        "best_step": progress.best_step, "best_validation_nats": progress.best_nats,
        "validation/documents": len(job.validation.documents),
        "validation/effective_documents": effective_number(job.validation.documents),
        "at_cap": float(at_cap(training, progress.evaluations)),
        "train/seconds": progress.seconds, "train/tokens_per_second": tokens / max(progress.seconds, 1e-9),
    }  # fmt: skip
    if spec(job.config.adapter.method).circuits:
        seen = on_text(job.opened.language.model, job.adapter, job.windows[:4, :-1])
        found |= {f"blocks/{key}": value for key, value in {**describe(job.adapter), **seen}.items()}
    return found
