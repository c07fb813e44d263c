"""The losses of knowledge distillation.

Each takes the logits of some rows and gives a number a row, in nats; `rows.values_of_rows` calls it with a few rows
at a time. The loop divides the sum over a whole optimizer step by what was counted in it, so that gradient
accumulation changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "IGNORED",
    "cross_entropy_rows",
    "forward_kl_rows",
    "hidden_distance_rows",
    "next_token_targets",
]

IGNORED = -100
"""The label of a token that counts nothing."""


def next_token_targets(labels: Tensor) -> Tensor:
    """What each position predicts: labels (batch, length) shifted left once; the last predicts nothing.

    Shapes stay as they are, so nothing that belongs to a position need be sliced and copied.
    """
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def forward_kl_rows(
    student_logits: Tensor, teacher_logits: Tensor, *, vocab_size: int, temperature: float, scale: float = 1.0
) -> Tensor:
    """KL(teacher ‖ student) in nats of each row, (rows,).

    Both distributions are softened by the temperature (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
    Network", 2015) and taken over the first `vocab_size` entries: what a model has beyond its tokenizer is padding.

    Args:
        student_logits: (rows, student vocabulary), any float type; gradients flow here alone.
        teacher_logits: (rows, teacher vocabulary).
        vocab_size: Entries that both share.
        temperature: Above 0.
        scale: What the divergence is multiplied by.
    """
    wanted = functional.log_softmax(
        teacher_logits.detach()[:, :vocab_size].to(student_logits.dtype) / temperature, dim=-1
    )
    given = functional.log_softmax(student_logits[:, :vocab_size] / temperature, dim=-1)
    share = wanted.exp()
    # An entry that the teacher rules out has nothing to teach, and zero times infinity is no number.
    return scale * torch.where(share > 0, share * (wanted - given), 0.0).sum(dim=-1)


def cross_entropy_rows(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Minus log p(target) in nats of each row, (rows,); logits (rows, vocabulary), targets (rows,)."""
    return functional.cross_entropy(student_logits, targets, reduction="none")


def hidden_distance_rows(projected: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Mean squared distance over the hidden width of each row, (rows,).

    Args:
        projected: (rows, teacher width): the student's hidden states in the teacher's space.
        teacher_hidden: The same shape (Romero et al., "FitNets", 2015).
    """
    return (projected.float() - teacher_hidden.detach().float()).square().mean(dim=-1)
