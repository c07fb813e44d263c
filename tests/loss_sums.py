"""Row losses, summed over all positions that have a target: what the tests of losses compare with dense formulas."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crashproof.distillation.losses.chunked import RowsLoss, values_of_rows
from crashproof.distillation.losses.divergences import (
    IGNORED,
    cross_entropy_rows,
    forward_kl_rows,
    hidden_distance_rows,
)
from crashproof.distillation.losses.topk import topk_kl_rows


def counted_rows(targets: Tensor) -> Tensor:
    return (targets.flatten() != IGNORED).nonzero().squeeze(-1)


def sum_of_rows(logits: Tensor, targets: Tensor, loss: RowsLoss, chunk_tokens: int = 512) -> Tensor:
    values = values_of_rows(
        logits, lambda states: states, counted_rows(targets), {"loss": loss}, chunk_tokens=chunk_tokens
    )
    return values["loss"].sum()


def cross_entropy_sum(logits: Tensor, targets: Tensor, *, chunk_tokens: int = 512) -> Tensor:
    wanted = targets.flatten()
    return sum_of_rows(logits, targets, lambda some, rows: cross_entropy_rows(some, wanted[rows]), chunk_tokens)


def _scale(temperature: float, is_scaled: bool) -> float:
    return temperature**2 if is_scaled else 1.0


def forward_kl_sum(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    scales_by_temperature_squared: bool = True,
    chunk_tokens: int = 512,
    **more: Any,
) -> Tensor:
    given, scale = teacher.flatten(0, 1), _scale(temperature, scales_by_temperature_squared)

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return forward_kl_rows(logits, given[rows], temperature=temperature, scale=scale, **more)

    return sum_of_rows(student, targets, loss, chunk_tokens)


def topk_kl_sum(
    student: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    scales_by_temperature_squared: bool = True,
    chunk_tokens: int = 512,
    **more: Any,
) -> Tensor:
    of_ids, of_logprobs = ids.flatten(0, 1), logprobs.flatten(0, 1)
    scale = _scale(temperature, scales_by_temperature_squared)

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return topk_kl_rows(logits, of_ids[rows], of_logprobs[rows], temperature=temperature, scale=scale, **more)

    return sum_of_rows(student, targets, loss, chunk_tokens)


def hidden_distance_sum(projected: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    rows = counted_rows(targets)
    return hidden_distance_rows(projected.flatten(0, 1)[rows], teacher.flatten(0, 1)[rows]).sum()
