"""The losses of knowledge distillation.

Each maps the logits of some rows to one value per row, in nats; `chunked.values_of_rows` calls it with a few rows at
a time. The training loop divides the sum over an optimizer step by the number of counted tokens, so that gradient
accumulation does not change the result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "IGNORED",
    "cross_entropy_rows",
    "forward_kl_rows",
    "hidden_distance_rows",
    "kl_of_logprobs",
    "log1mexp",
    "next_token_targets",
]

IGNORED = -100
"""The label of a token that no loss counts."""

_LOG_HALF = -math.log(2)


def next_token_targets(labels: Tensor) -> Tensor:
    """The label that each position predicts: labels (batch, length) shifted left once; none for the last position.

    The shape is unchanged, so that per-position tensors need no slicing and copying.
    """
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def forward_kl_rows(
    student_logits: Tensor, teacher_logits: Tensor, *, vocab_size: int, temperature: float, scale: float = 1.0
) -> Tensor:
    """KL(teacher ‖ student) in nats of each row, (rows,).

    Both distributions are softened by the temperature (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
    Network", 2015) and taken over the first `vocab_size` entries: further entries of a model are padding.

    Args:
        student_logits: (rows, student vocabulary), any float type; gradients flow only here.
        teacher_logits: (rows, teacher vocabulary).
        vocab_size: Entries that both share.
        temperature: Above 0.
        scale: Factor of the divergence.
    """
    wanted = functional.log_softmax(
        teacher_logits.detach()[:, :vocab_size].to(student_logits.dtype) / temperature, dim=-1
    )
    given = functional.log_softmax(student_logits[:, :vocab_size] / temperature, dim=-1)
    return scale * kl_of_logprobs(wanted, given)


def kl_of_logprobs(wanted: Tensor, given: Tensor) -> Tensor:
    """KL(wanted ‖ given) in nats of each row, (rows,), of log-probabilities (rows, entries)."""
    share = wanted.exp()
    # An entry with probability 0 contributes nothing, but 0 times infinity is NaN.
    return torch.where(share > 0, share * (wanted - given), 0.0).sum(dim=-1)


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


def log1mexp(logprobs: Tensor) -> Tensor:
    """log(1 - exp(x)) of values up to 0, exact at both ends, with a finite gradient below 0.

    See Mächler, "Accurately Computing log(1 - exp(-|a|))", 2012.
    """
    # Each branch is clamped away from the other's side, where its gradient is NaN.
    near = torch.log(-torch.expm1(logprobs.clamp(min=_LOG_HALF)))
    far = torch.log1p(-torch.exp(logprobs.clamp(max=_LOG_HALF)))
    return torch.where(logprobs > _LOG_HALF, near, far)
