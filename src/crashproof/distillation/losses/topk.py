"""Divergence from a teacher's top-k entries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crashproof.distillation.losses.divergences import kl_of_logprobs, log1mexp

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

    The teacher's mass on entries that were not kept goes into the bucket, and is compared with the student's mass on
    them. If it were taken as zero, the student would learn that the long tail does not exist, and be biased and
    overconfident (Anshumann et al., "Sparse Logit Sampling", 2025). Both sides are the true distributions on a
    coarser partition: a student equal to its teacher has gradient zero, and by the data processing inequality the
    value is a lower bound of the divergence over the whole vocabulary, and equal to it if every entry is kept.

    Args:
        student_logits: (rows, student vocabulary), any float type; gradients flow only here.
        topk_ids: (rows, k) of distinct integers below `vocab_size`; -1 if fewer were kept.
        topk_logprobs: (rows, k): the teacher's log-probabilities in nats, already softened by `temperature`. An
            entry with the id -1 belongs to the bucket.
        vocab_size: Entries that both share; further entries of the student are padding.
        temperature: Above 0; softens the student (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
            Network", 2015).
        scale: Factor of the divergence.
    """
    wanted = _teacher_buckets(topk_logprobs.detach().to(student_logits.dtype), topk_ids, vocab_size)
    given = _student_buckets(student_logits[:, :vocab_size] / temperature, topk_ids)
    return scale * kl_of_logprobs(wanted, given)


def _teacher_buckets(logprobs: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """Log-probabilities (rows, k + 1) that sum to 1; the last is the rest."""
    kept = logprobs.masked_fill(ids < 0, -math.inf)
    total = kept.logsumexp(dim=-1, keepdim=True)
    # Rounded to 16 bits, the kept entries can sum to slightly more than 1; if all were kept, they sum to 1.
    is_all = (total >= 0) | _keeps_everything(ids, vocab_size)
    rest = torch.where(is_all, -math.inf, log1mexp(total.clamp(max=0)))
    return torch.cat([torch.where(is_all, kept - total, kept), rest], dim=-1)


def _student_buckets(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (rows, k + 1) of the kept entries, and of all others together.

    The others are summed directly: 1 minus the kept entries would be rounding error if the student is confident.
    """
    vocab_size = logits.shape[-1]
    total = logits.logsumexp(dim=-1, keepdim=True)
    padding = torch.where(ids < 0, vocab_size, ids)
    is_kept = torch.zeros(logits.shape[0], vocab_size + 1, dtype=torch.bool, device=logits.device)
    is_kept = is_kept.scatter(-1, padding, value=True)[:, :vocab_size]
    # Without other entries their sum has no gradient; the teacher's bucket is empty, and the value is not used.
    is_kept = is_kept & ~_keeps_everything(ids, vocab_size)
    rest = logits.masked_fill(is_kept, -math.inf).logsumexp(dim=-1, keepdim=True)
    kept = logits.gather(-1, ids.clamp(min=0))
    return torch.cat([kept, rest], dim=-1) - total


def _keeps_everything(ids: Tensor, vocab_size: int) -> Tensor:
    return (ids >= 0).sum(dim=-1, keepdim=True) == vocab_size
