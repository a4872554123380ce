"""Cross-entropy and distillation, without ever holding a [tokens, vocabulary] table of a whole batch.

The gradient of the hidden states is made with the loss, piece by piece, and nothing is computed twice.

loss = (1 - w) CE + w T^2 KL(teacher || student), both per token, at temperature T (Hinton et al., arXiv:1503.02531)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from qrun.evaluation import perplexity
from qrun.evaluation.trunk import last_hidden

Hidden = Callable[[Any, Tensor], Tensor]  # model, ids [batch, T] -> last hidden states [batch, T, d]


@dataclass(frozen=True)
class Teacher:
    """Where the soft targets come from. Hidden states [batch, T, d] for ids [batch, T], and the head that reads them;
    `hidden` is told how the student runs."""

    hidden: Callable[[Tensor, Hidden], Tensor]
    head: Callable[[Tensor], Tensor]


def frozen_teacher(model: Any, adapter: Any) -> Teacher:
    """The model itself with its adapter switched off."""

    @torch.no_grad()
    def hidden(ids: Tensor, run: Hidden) -> Tensor:
        with adapter.disabled():
            return run(model, ids)

    return Teacher(hidden, model.lm_head)


def teacher_of(model: Any) -> Teacher:
    """Another model of the same vocabulary: the uncompressed original."""

    @torch.no_grad()
    def hidden(ids: Tensor, _: Hidden) -> Tensor:
        return last_hidden(model, ids.to(model.device)).to(ids.device)

    return Teacher(hidden, model.lm_head)


Piece = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # hidden states of some tokens -> their loss, and a figure


class InPieces(torch.autograd.Function):
    """Sums of `piece(hidden[part], part)` over parts of so many rows. The gradient of `hidden` [tokens, d] is made at
    once, so that a part's logits are gone before the next one's come; the frozen head gets none."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, piece: Piece, rows: int) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total, figure = hidden.new_zeros(2, dtype=torch.float32).unbind()
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            own = hidden[part].detach().requires_grad_(gradient is not None)
            with torch.set_grad_enabled(gradient is not None):
                loss, beside = piece(own, part)
            if gradient is not None:
                (gradient[part],) = torch.autograd.grad(loss, own)
            total, figure = total + loss.detach(), figure + beside.detach()
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(figure)
        return total, figure

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None


def window_loss(
    model: Any, ids: Tensor, teacher: Teacher | None, weight: float, temperature: float, run: Hidden = last_hidden
) -> tuple[Tensor, float]:
    """Loss of windows [batch, T + 1] to differentiate, and its cross-entropy part in nats per token. `run` gives the
    hidden states of the model as it stands."""
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
    student = run(model, inputs).flatten(0, 1)
    soft = teacher.hidden(inputs, run).flatten(0, 1) if teacher is not None else None

    def piece(h: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logits = model.lm_head(h).float()
        ce = cross_entropy(logits, targets[part], reduction="sum")
        if teacher is None or soft is None:
            return ce / len(targets), ce
        with torch.no_grad():
            reference = log_softmax(teacher.head(soft[part]).float() / temperature, dim=-1)
        kl = kl_div(log_softmax(logits / temperature, dim=-1), reference, reduction="sum", log_target=True)
        return ((1 - weight) * ce + weight * temperature**2 * kl) / len(targets), ce

    loss, ce = InPieces.apply(student, piece, perplexity.piece(model.config.vocab_size))
    return loss, ce.item() / len(targets)
