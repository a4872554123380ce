"""The training loop: AdamW on the parameters of an adapter, everything else frozen.

    fit(model, adapter, windows, validate, config, ...) -> best parameters and the record of the run

Two schedules: a cosine of fixed length, or, with `training.patience`, a constant rate until validation is flat and then
a linear decay (warm-up, stable, decay: Hu et al., arXiv:2404.06395), so that nobody needs to know the number of steps
beforehand. With `training.average` the parameters' running mean is what is validated and kept (Polyak and Juditsky,
1992): it does a decay's work from the first step on, so that none is needed (`decay=0`). Gradient accumulation,
validation while training with the best parameters kept, checkpoints, and a stop with a clear word when the loss is not
finite or runs away.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qrun.adapters.linear import Adapter
from qrun.config.schema import TrainingConfig
from qrun.errors import InputError, Interrupted, NotFinite, RunFailed
from qrun.evaluation.trunk import Trunk
from qrun.training import checkpoint
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt
from qrun.training.losses import Hidden, Teacher, last_hidden, window_loss


class Diverged(RunFailed):
    """The loss is not finite or ran away: another rate may do."""


Evaluations = Sequence[Mapping[str, float]]  # rows with `step` and `validation_nats`, rising from step 0


def plateau(config: TrainingConfig, evaluations: Evaluations) -> int | None:
    """The first validated step by which nats had not fallen by `min_gain` for `patience` steps. A function of what the
    checkpoint holds, so a resumed run finds the same one."""
    if config.patience is None:
        return None
    mark, best = 0, math.inf
    for row in evaluations:
        step, nats = int(row["step"]), row["validation_nats"]
        if nats < best - config.min_gain:
            mark, best = step, nats
        elif step - mark >= config.patience:
            return step
    return None


def decline(config: TrainingConfig, evaluations: Evaluations) -> tuple[int, int]:
    """Steps from which the rate falls and at which training ends: from the plateau, or from the last step that lets the
    decay, `decay` of the steps before it, end at the cap; without patience from the warm-up to the last step."""
    if config.patience is None:
        return config.warmup, config.steps
    latest = max(1, int(config.steps / (1 + config.decay)))
    begin = min(plateau(config, evaluations) or latest, latest)
    return begin, min(config.steps, begin + (max(1, round(config.decay * begin)) if config.decay else 0))


def at_cap(config: TrainingConfig, evaluations: Evaluations) -> bool:
    """Whether `steps` ended a training that validation had not."""
    latest = max(1, int(config.steps / (1 + config.decay)))
    return config.patience is not None and (plateau(config, evaluations) or math.inf) > latest


def learning_rate(config: TrainingConfig, step: int, evaluations: Evaluations = ()) -> float:
    """Linear warm-up, then a cosine from lr to lr * final_lr at the last step, or with patience lr until the decline
    and a line to lr * final_lr; `step` counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    begin, end = decline(config, evaluations)
    if config.patience is None:
        share = (step - begin) / max(end - 1 - begin, 1)
        return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
    return config.lr * (1 - (1 - config.final_lr) * max(0.0, (step + 1 - begin) / max(end - begin, 1)))


class Mean:
    """The running mean of parameters: m <- d m + (1 - d) p after each step, d = min(decay, (1 + step) / (10 + step)),
    so that the start is forgotten early. Decay 0 is the parameters themselves."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the step of that number, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The means stand in the parameters."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def training_windows(ids: Tensor, context: int) -> Tensor:
    """Disjoint windows [count, context] of a token stream [T]; a tail shorter than a window is left out of training."""
    count = len(ids) // context
    if count == 0:
        why = f"the training split has only {len(ids)} tokens, shorter than one window"
        raise InputError(f"training.context={context}: {why}")
    return ids[: count * context].view(count, context)


def batch_rows(windows: int, size: int, index: int, seed: int) -> Tensor:
    """Rows of the `index`-th batch. A pass over all windows in an order drawn from (seed, epoch), then the next.
    Stateless, so a resumed run continues it."""
    first = index * size
    rows: list[int] = []
    while len(rows) < size:
        epoch, offset = divmod(first + len(rows), windows)
        order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        rows += order[offset : offset + size - len(rows)].tolist()
    return torch.tensor(rows)


def fit(
    model: Any, adapter: Adapter, windows: Tensor, validate: Callable[[], float], config: TrainingConfig, seed: int,
    teacher: Teacher | None, path: Path, progress: Progress, on_step: Callable[[Progress], None], interrupt: Interrupt,
    trunk: Trunk | None = None,
) -> tuple[dict[str, Tensor], Progress]:  # fmt: skip
    """Train from `progress` on (step 0, or what a checkpoint at `path` says) and return the best parameters by
    validation. windows [count, context] int64; `validate` gives nats per token on validation text; `trunk` keeps what
    the frozen layers make of the windows. Raises Diverged, and Interrupted, after a checkpoint, on a
    signal."""
    parameters = list(adapter.tensors().values())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    best = adapter.snapshot()
    mean = Mean(parameters, config.average)
    if progress.step:
        facts = progress.facts  # they name the run that goes on
        best, mean.values, progress = checkpoint.restore(path, adapter, optimizer)
        progress.facts = facts
    else:
        progress.best_nats = validate()
        progress.evaluations.append({"step": 0, "validation_nats": progress.best_nats})
        on_step(progress)
    with interrupt.at_step_ends(), checkpointed(model, config.gradient_checkpointing):
        while progress.step < decline(config, progress.evaluations)[1]:
            started = time.perf_counter()
            lr = learning_rate(config, progress.step, progress.evaluations)
            row = optimizer_step(model, windows, optimizer, parameters, config, progress.step, seed, teacher, trunk, lr)
            progress.step += 1
            mean.update(progress.step)
            progress.history.append({"step": progress.step, **row})
            _check(row["loss"], progress, config)
            progress.seconds += time.perf_counter() - started
            last = progress.step == decline(config, progress.evaluations)[1]
            if last or progress.step % config.eval_every == 0:
                with mean.in_place():
                    nats = _finite(validate, progress, config)
                    if nats < progress.best_nats:
                        progress.best_nats, progress.best_step, best = nats, progress.step, adapter.snapshot()
                progress.evaluations.append({"step": progress.step, "validation_nats": nats})
                last = progress.step >= decline(config, progress.evaluations)[1]  # a plateau without a decay ends it
            on_step(progress)
            stop = interrupt.received
            if last or stop or progress.step % config.checkpoint_every == 0:
                checkpoint.save(path, adapter, optimizer, best, mean.values, progress)
            if stop and not last:
                how = "checkpoint saved; the same command goes on, `qrun train` with --resume"
                raise Interrupted(stop, f"interrupted at step {progress.step}; {how}")
    return best, progress


def optimizer_step(
    model: Any, windows: Tensor, optimizer: torch.optim.Optimizer, parameters: list[Any], config: TrainingConfig,
    step: int, seed: int, teacher: Teacher | None, trunk: Trunk | None = None, lr: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """One update over `accumulation` batches, at rate `lr` or that of the step. Returns loss and cross-entropy in nats
    per token, gradient norm and learning rate."""
    lr = learning_rate(config, step) if lr is None else lr
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss_sum = ce_sum = 0.0
    for part in range(config.accumulation):
        rows = batch_rows(len(windows), config.batch, step * config.accumulation + part, seed)
        ids = windows[rows].to(model.device)
        loss, ce = window_loss(model, ids, teacher, config.distill_weight, config.temperature, _run(trunk, rows))
        (loss / config.accumulation).backward()
        loss_sum, ce_sum = loss_sum + loss.item(), ce_sum + ce
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf).item()
    if math.isfinite(loss_sum) and math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    loss_mean, ce_mean = loss_sum / config.accumulation, ce_sum / config.accumulation
    return {"loss": loss_mean, "cross_entropy": ce_mean, "gradient_norm": norm, "lr": lr}


def _run(trunk: Trunk | None, rows: Tensor) -> Hidden:
    return last_hidden if trunk is None else lambda model, ids: trunk.hidden(model, ids, rows.tolist())


@contextmanager
def checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Each layer keeps its input alone and computes again in the backward pass. The layers' own switch asks for
    `training`; what is inside them, dropout among it, stays in evaluation mode."""
    layers = model.model.layers if wanted else []
    if wanted:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        if wanted:
            model.gradient_checkpointing_disable()


def _finite(validate: Callable[[], float], progress: Progress, config: TrainingConfig) -> float:
    """Nats per token on validation text; a last update can ruin parameters whose loss was a number before it."""
    try:
        return validate()
    except NotFinite as error:
        raise Diverged(f"at step {progress.step} {error}; lower training.lr (now {config.lr:g})") from error


def _check(loss: float, progress: Progress, config: TrainingConfig) -> None:
    first, how = progress.history[0]["loss"], f"lower training.lr (now {config.lr:g})"
    for name, value in (("loss", loss), ("gradient norm", progress.history[-1]["gradient_norm"])):
        if not math.isfinite(value):
            raise Diverged(f"{name} became {value} at step {progress.step}: training stopped; {how}")
    if loss > first + config.divergence:
        raise Diverged(f"loss rose from {first:.2f} to {loss:.2f} at step {progress.step}: diverged; {how}")
