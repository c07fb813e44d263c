"""Samples with a teacher's log-probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from crashproof.distillation.data.text_data import Batch, Sample, TopK
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.text.aligned_answer import AlignedAnswer

__all__ = ["AnsweredSample", "answered_sample", "unanswered", "with_topk"]


@dataclass(frozen=True, slots=True)
class AnsweredSample:
    """The tokens of a prompt with its answer, and what the teacher had for them."""

    sample: Sample
    entries: list[tuple[int, list[tuple[int, float]]]]
    """Positions, each with the teacher's entries for the next token."""

    def first(self, num_tokens: int) -> AnsweredSample:
        """The same with these tokens alone."""
        sample = Sample(ids=self.sample.ids[:num_tokens], is_predicted=self.sample.is_predicted[:num_tokens])
        return replace(self, sample=sample)

    def num_counted(self) -> int:
        """Tokens that a loss counts; the first is predicted by nothing."""
        return sum(self.sample.is_predicted[1:])

    def labels(self) -> list[int]:
        """The tokens that are learned, and `IGNORED` for the others."""
        pairs = zip(self.sample.ids, self.sample.is_predicted, strict=True)
        return [token if is_predicted else IGNORED for token, is_predicted in pairs]


def answered_sample(prompt_ids: list[int], aligned: AlignedAnswer, last: list[int]) -> AnsweredSample:
    """The sample of a prompt, the teacher's tokens, and what is learned behind them."""
    ids = [*prompt_ids, *aligned.ids, *last]
    entries = [*aligned.entries, aligned.end_entries] if last else aligned.entries
    return AnsweredSample(
        Sample(ids=ids, is_predicted=[place >= len(prompt_ids) for place in range(len(ids))]),
        # The position before a token predicts it.
        [(len(prompt_ids) + place - 1, known) for place, known in enumerate(entries)],
    )


def unanswered(ids: list[int]) -> AnsweredSample:
    """A sample of which nothing is learned."""
    return AnsweredSample(Sample(ids=ids, is_predicted=[False] * len(ids)), [])


def with_topk(batch: Batch, samples: list[AnsweredSample], top_k: int) -> Batch:
    """A batch of these samples with the teacher's entries."""
    shape = (*batch.labels.shape, top_k)
    ids = torch.full(shape, -1, dtype=torch.long)
    logprobs = torch.full(shape, -math.inf)
    found = [
        (row, position, place, token, logprob)
        for row, each in enumerate(samples)
        for position, known in each.entries
        if 0 <= position < len(each.sample.ids) - 1
        for place, (token, logprob) in enumerate(known)
    ]
    if found:
        rows, positions, places, tokens, values = zip(*found, strict=True)
        where = tuple(torch.tensor(each) for each in (rows, positions, places))
        # One by one, a batch of a few thousand tokens would take seconds.
        ids[where] = torch.tensor(tokens)
        logprobs[where] = torch.tensor(values)
    return replace(batch, topk=TopK(ids=ids, logprobs=logprobs))
