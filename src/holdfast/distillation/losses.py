"""The losses of knowledge distillation.

Every loss is a sum over counted tokens; the loop divides by the number of tokens of the whole optimizer step, so
that gradient accumulation changes nothing. Rows are taken in chunks and computed again in the backward pass: beside
the logits themselves, no full-vocabulary copy is alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from holdfast.distillation.sections import Section

__all__ = [
    "IGNORED",
    "LossConfig",
    "RowsLoss",
    "cross_entropy_sum",
    "forward_kl_sum",
    "hidden_state_sum",
    "next_token_targets",
    "sum_over_rows",
]

IGNORED = -100
"""The label of a token that counts nothing."""


class LossConfig(Section):
    """`loss`: how much each part weighs; a part of weight 0 is not computed."""

    kd: float = Field(default=1.0, ge=0)
    """Forward KL from the teacher's distribution to the student's."""
    ce: float = Field(default=0.5, ge=0)
    """Cross-entropy with the text itself."""
    intermediate: float = Field(default=0.1, ge=0)
    """Distance of projected hidden states."""
    temperature: float = Field(default=2.0, gt=0)
    scales_by_temperature_squared: bool = True
    """Keeps the gradient's size independent of the temperature (Hinton, Vinyals & Dean 2015, section 2)."""
    layers: dict[int, int] | None = None
    """Student layer → teacher layer, counted from 1; by default spread evenly, last to last."""
    chunk_tokens: int = Field(default=512, ge=1)


def next_token_targets(labels: Tensor) -> Tensor:
    """What each position predicts: labels (batch, length) shifted left once; the last predicts nothing.

    Shapes stay as they are, so the logits need not be sliced and copied.
    """
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def forward_kl_sum(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    scales_by_temperature_squared: bool = True,
    chunk_tokens: int = 512,
) -> Tensor:
    """KL(teacher ‖ student) in nats, summed over the positions that have a target.

    Both distributions are softened by the temperature (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
    Network", 2015) and taken over the first `vocab_size` entries: what a model has beyond its tokenizer is padding.

    Args:
        student_logits: (batch, length, student vocabulary), any float type; gradients flow here alone.
        teacher_logits: (batch, length, teacher vocabulary).
        targets: (batch, length), `IGNORED` where nothing is counted.
        vocab_size: Entries that both share.
        temperature: Above 0.
        scales_by_temperature_squared: Multiply by its square.
        chunk_tokens: Rows computed at a time.
    """
    teacher = teacher_logits.detach().flatten(0, 1)
    scale = temperature**2 if scales_by_temperature_squared else 1.0

    def rows_loss(logits: Tensor, rows: Tensor) -> Tensor:
        wanted = functional.log_softmax(teacher[rows, :vocab_size].float() / temperature, dim=-1)
        given = functional.log_softmax(logits[:, :vocab_size] / temperature, dim=-1)
        share = wanted.exp()
        # An entry that the teacher rules out has nothing to teach, and zero times infinity is no number.
        return scale * torch.where(share > 0, share * (wanted - given), 0.0).sum()

    return sum_over_rows(student_logits, targets, rows_loss, chunk_tokens)


def cross_entropy_sum(student_logits: Tensor, targets: Tensor, *, chunk_tokens: int = 512) -> Tensor:
    """Minus log p(target) in nats, summed over the positions that have one; shapes as in `forward_kl_sum`."""
    wanted = targets.flatten()

    def rows_loss(logits: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, wanted[rows], reduction="sum")

    return sum_over_rows(student_logits, targets, rows_loss, chunk_tokens)


def hidden_state_sum(projected: Tensor, teacher_hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance over the hidden width, summed over the positions that have a target.

    Args:
        projected: (batch, length, teacher width): the student's hidden states in the teacher's space.
        teacher_hidden: The same shape (Romero et al., "FitNets", 2015).
        targets: (batch, length), `IGNORED` where nothing is counted.
    """
    counted = targets != IGNORED
    distance = projected[counted].float() - teacher_hidden.detach()[counted].float()
    return distance.square().mean(dim=-1).sum()


RowsLoss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits (rows, vocabulary) in fp32 and the rows' positions; returns the sum of their losses."""


def sum_over_rows(logits: Tensor, targets: Tensor, rows_loss: RowsLoss, chunk_tokens: int) -> Tensor:
    """The losses of all positions that have a target, `chunk_tokens` of them at a time; gradients flow to the logits.

    Args:
        logits: (batch, length, vocabulary).
        targets: (batch, length), `IGNORED` where nothing is counted.
        rows_loss: Called again in the backward pass, so it must give the same each time.
        chunk_tokens: Rows that it is given at once.
    """
    counted = (targets.flatten() != IGNORED).nonzero().squeeze(-1)
    result: Tensor = _RowsInChunks.apply(  # type: ignore[no-untyped-call]  # torch leaves it so.
        logits.flatten(0, 1), counted, rows_loss, chunk_tokens
    )
    return result


class _RowsInChunks(torch.autograd.Function):
    """Forward sums chunk after chunk without a graph; backward computes each chunk again for its gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, rows_loss: RowsLoss, chunk_tokens: int) -> Tensor:
        ctx.save_for_backward(logits, rows)
        ctx.rows_loss = rows_loss
        ctx.chunk_tokens = chunk_tokens
        total = torch.zeros((), dtype=_accumulator(logits), device=logits.device)
        for chunk in torch.split(rows, chunk_tokens):
            total += rows_loss(logits[chunk].to(total.dtype), chunk)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        logits, rows = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for chunk in torch.split(rows, ctx.chunk_tokens):
            with torch.enable_grad():
                own = logits[chunk].to(_accumulator(logits)).detach().requires_grad_()
                (chunk_gradient,) = torch.autograd.grad(ctx.rows_loss(own, chunk), own)
            gradient[chunk] = (chunk_gradient * outputs[0]).to(gradient.dtype)
        return gradient, None, None, None


def _accumulator(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
