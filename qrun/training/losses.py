"""Cross-entropy and distillation, without ever holding a [tokens, vocabulary] table of a whole batch.

loss = (1 - w) CE + w T^2 KL(teacher || student), both per token, at temperature T (Hinton et al., arXiv:1503.02531)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

from qrun.evaluation.perplexity import LOGITS


@dataclass(frozen=True)
class Teacher:
    """Where the soft targets come from. Hidden states [batch, T, d] for ids [batch, T], and the head that reads
    them."""

    hidden: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


def frozen_teacher(model: Any, adapter: Any) -> Teacher:
    """The model itself with its adapter switched off."""

    @torch.no_grad()
    def hidden(ids: Tensor) -> Tensor:
        with adapter.disabled():
            return model.model(input_ids=ids, use_cache=False).last_hidden_state

    return Teacher(hidden, model.lm_head)


def teacher_of(model: Any) -> Teacher:
    """Another model of the same vocabulary: the uncompressed original."""

    @torch.no_grad()
    def hidden(ids: Tensor) -> Tensor:
        return model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state.to(ids.device)

    return Teacher(hidden, model.lm_head)


def window_loss(
    model: Any, ids: Tensor, teacher: Teacher | None, weight: float, temperature: float
) -> tuple[Tensor, float]:
    """Loss of windows [batch, T + 1] to differentiate, and its cross-entropy part in nats per token."""
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
    student = model.model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    soft = teacher.hidden(inputs).flatten(0, 1) if teacher is not None else None
    rows = max(1, LOGITS // model.config.vocab_size)

    def piece(h: Tensor, target: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = model.lm_head(h).float()
        ce = cross_entropy(logits, target, reduction="sum")
        if teacher is None or s is None:
            return ce, ce.detach()
        with torch.no_grad():
            reference = log_softmax(teacher.head(s).float() / temperature, dim=-1)
        kl = kl_div(log_softmax(logits / temperature, dim=-1), reference, reduction="sum", log_target=True)
        return (1 - weight) * ce + weight * temperature**2 * kl, ce.detach()

    total, plain = student.new_zeros((), dtype=torch.float32), 0.0
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        arguments = (student[part], targets[part], soft[part] if soft is not None else None)
        # With several pieces each one's logits are recomputed in the backward pass, so that only one table exists at a
        # time.
        loss, ce = checkpoint(piece, *arguments, use_reentrant=False) if len(targets) > rows else piece(*arguments)
        total, plain = total + loss, plain + ce.item()
    return total / len(targets), plain / len(targets)
