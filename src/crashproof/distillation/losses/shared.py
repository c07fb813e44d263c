"""Divergence over the shared part of two vocabularies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crashproof.distillation.losses.divergences import kl_of_logprobs
from crashproof.distillation.text.shared_tokens import SharedTokens

__all__ = ["SharedIds", "shared_kl_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedIds:
    """`SharedTokens` on the device of the logits."""

    shared: Tensor
    """(shared,) of int64."""
    others_of_teacher: Tensor
    others_of_student: Tensor

    @classmethod
    def of(cls, tokens: SharedTokens) -> SharedIds:
        """The ids as tensors, on the CPU."""
        return cls(
            shared=torch.tensor(tokens.shared, dtype=torch.long),
            others_of_teacher=torch.tensor(tokens.others_of_teacher, dtype=torch.long),
            others_of_student=torch.tensor(tokens.others_of_student, dtype=torch.long),
        )

    def to(self, device: torch.device) -> SharedIds:
        """The same on a device."""
        return SharedIds(
            shared=self.shared.to(device),
            others_of_teacher=self.others_of_teacher.to(device),
            others_of_student=self.others_of_student.to(device),
        )


def shared_kl_rows(
    student_logits: Tensor, teacher_logits: Tensor, ids: SharedIds, *, temperature: float, scale: float = 1.0
) -> Tensor:
    """KL(teacher ‖ student) in nats over the shared ids, and one bucket for all others, of each row, (rows,).

    A renamed end mark is in the bucket of both, so the student still learns when to end. If only one of the two has
    other ids, there is nothing to compare them with, and they are left out.

    Args:
        student_logits: (rows, student vocabulary), any float type; gradients flow only here.
        teacher_logits: (rows, teacher vocabulary).
        ids: On the same device.
        temperature: Above 0.
        scale: Factor of the divergence.
    """
    has_bucket = len(ids.others_of_teacher) > 0 and len(ids.others_of_student) > 0
    of_teacher = ids.others_of_teacher if has_bucket else None
    of_student = ids.others_of_student if has_bucket else None
    wanted = _buckets(teacher_logits.detach().to(student_logits.dtype) / temperature, ids.shared, of_teacher)
    given = _buckets(student_logits / temperature, ids.shared, of_student)
    return scale * kl_of_logprobs(wanted, given)


def _buckets(logits: Tensor, shared: Tensor, others: Tensor | None) -> Tensor:
    kept = logits[:, shared]
    if others is not None:
        kept = torch.cat([kept, logits[:, others].logsumexp(dim=-1, keepdim=True)], dim=-1)
    return kept.log_softmax(dim=-1)
