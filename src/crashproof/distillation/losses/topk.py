"""Losses from a few entries of the teacher's distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["topk_kl_rows"]


def topk_kl_rows(
    student_logits: Tensor,
    topk_ids: Tensor,
    topk_logprobs: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    scale: float = 1.0,
) -> Tensor:
    """KL(teacher ‖ student) in nats over the kept entries and one bucket for all others, of each row, (rows,).

    What the teacher gives to entries that were not kept is mass of their bucket, held against all that the student
    gives to them. Taken for zero instead, the student would learn that the long tail does not exist, and be biased
    and overconfident (Anshumann et al., "Sparse Logit Sampling", 2025). Both sides are the true distributions on a
    coarser partition: a student equal to its teacher has gradient zero, and by the data processing inequality the
    value is a lower bound of the divergence over the whole vocabulary, and equal to it where every entry is kept.

    Args:
        student_logits: (rows, student vocabulary), any float type; gradients flow here alone.
        topk_ids: (rows, k) of integers below `vocab_size`, no one twice in a row; -1 where fewer were kept.
        topk_logprobs: (rows, k): the teacher's log-probabilities in nats, softened by `temperature` already. What an
            entry with the id -1 has counts as mass of the bucket.
        vocab_size: Entries that both share; what the student has beyond them is padding.
        temperature: Above 0; softens the student (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
            Network", 2015).
        scale: What the divergence is multiplied by.
    """
    wanted = _teacher_buckets(topk_logprobs.detach().to(student_logits.dtype), topk_ids, vocab_size)
    given = _student_buckets(student_logits[:, :vocab_size] / temperature, topk_ids)
    share = wanted.exp()
    # A bucket that the teacher leaves empty has nothing to teach, and zero times infinity is no number.
    return scale * torch.where(share > 0, share * (wanted - given), 0.0).sum(dim=-1)


def _teacher_buckets(logprobs: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """Log-probabilities (rows, k + 1) that sum to 1; the last is what the kept entries leave."""
    kept = logprobs.masked_fill(ids < 0, -math.inf)
    total = kept.logsumexp(dim=-1, keepdim=True)
    # Rounded to 16 bits, what was kept can sum to a little more than 1; and where all was kept, it sums to 1.
    is_all = (total >= 0) | _keeps_everything(ids, vocab_size)
    rest = torch.where(is_all, -math.inf, _log1mexp(total.clamp(max=0)))
    return torch.cat([torch.where(is_all, kept - total, kept), rest], dim=-1)


def _student_buckets(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (rows, k + 1) of the kept entries, and of all others together.

    The others are summed themselves: 1 minus the kept would be rounding error where the student is sure.
    """
    vocab_size = logits.shape[-1]
    total = logits.logsumexp(dim=-1, keepdim=True)
    padding = torch.where(ids < 0, vocab_size, ids)
    is_kept = torch.zeros(logits.shape[0], vocab_size + 1, dtype=torch.bool, device=logits.device)
    is_kept = is_kept.scatter(-1, padding, value=True)[:, :vocab_size]
    # Without any other entry their sum has no gradient; the teacher's bucket is empty, and the value is not used.
    is_kept = is_kept & ~_keeps_everything(ids, vocab_size)
    rest = logits.masked_fill(is_kept, -math.inf).logsumexp(dim=-1, keepdim=True)
    kept = logits.gather(-1, ids.clamp(min=0))
    return torch.cat([kept, rest], dim=-1) - total


def _keeps_everything(ids: Tensor, vocab_size: int) -> Tensor:
    return (ids >= 0).sum(dim=-1, keepdim=True) == vocab_size


def _log1mexp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) for values up to 0, exact at both ends (Mächler, "Accurately Computing log(1 - exp(-|a|))",
    2012).
    """
    return torch.where(value > -math.log(2), (-value.expm1()).log(), (-value.exp()).log1p())
