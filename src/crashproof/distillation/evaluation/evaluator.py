"""Measure a student on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch, TokenizedData
from crashproof.pytorch.device import ComputeDevice

__all__ = [
    "EvaluatedStudent",
    "Evaluator",
    "Place",
    "Sums",
    "TextEvaluator",
    "added",
    "means",
    "measuring",
    "nats_per_token",
]

Sums = dict[str, tuple[float, float]]
"""By name, a sum and what it is divided by; the sums of all processes are added up before the division."""

NATS = "nats"
_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This process among those that evaluate together."""

    rank: int
    num_ranks: int
    in_lockstep: bool
    """The model is sharded: every process must run it equally often."""

    def batches(self, num_samples: int, batch_size: int = _BATCH_SIZE) -> Iterator[tuple[list[int], list[bool]]]:
        """Batches of this process's samples, each sample with whether it counts.

        In lockstep every process gets the same number of batches; a sample that does not count fills up where one has
        fewer.
        """
        own = list(range(self.rank, num_samples, self.num_ranks))
        counts = [True] * len(own)
        if self.in_lockstep:
            num_missing = math.ceil(num_samples / self.num_ranks) - len(own)
            own += [0] * num_missing
            counts += [False] * num_missing
        for first in range(0, len(own), batch_size):
            yield own[first : first + batch_size], counts[first : first + batch_size]


class EvaluatedStudent(Protocol):
    """What an evaluator needs of a student; a recipe provides it."""

    student: PreTrainedModel
    """The model itself."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        ...

    def train(self, mode: bool = True) -> object:
        """Switch dropout on or off."""
        ...

    def cross_entropies(self, batch: Batch) -> Tensor:
        """Minus log p of each predicted token of a batch, in nats, in the order of `Batch.rows`."""
        ...

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings: object) -> Tensor:
        """Greedy continuations of prompts that are padded on the left; (batch, length), the new tokens last."""
        ...


class Evaluator(Protocol):
    """Measures a student; changes neither weights nor random states."""

    def sums(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        """Measure this process's share of the held-out data; `means` makes numbers of the sums of all."""
        ...


class TextEvaluator:
    """Reports `perplexity`: exp of the nats per token that the student needs for held-out text."""

    def __init__(self, tokens: TokenizedData) -> None:
        self._tokens = tokens

    def sums(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        """See `Evaluator.sums`."""
        with measuring(student):
            return nats_per_token(student, self._tokens, device, place)


@contextmanager
def measuring(student: EvaluatedStudent) -> Iterator[None]:
    """Switch the student's dropout off, and back to what it was afterwards."""
    was_training = student.training
    student.train(False)
    try:
        yield
    finally:
        student.train(was_training)


def nats_per_token(student: EvaluatedStudent, tokens: TokenizedData, device: ComputeDevice, place: Place) -> Sums:
    """Cross-entropy over the predicted tokens of this process's share."""
    total, num_tokens = 0.0, 0
    for indices, counts in place.batches(len(tokens)):
        batch = tokens.batch(indices)
        values = student.cross_entropies(batch.to(device.device)).double().cpu()
        counted = batch.rows // batch.input_ids.shape[1]
        weights = values.new_tensor(counts)[counted]
        total += float((values * weights).sum())
        num_tokens += int(weights.sum())
    return {NATS: (total, num_tokens)}


def added(all_sums: list[Sums]) -> Sums:
    """The sums of several processes together."""
    names = dict.fromkeys(name for sums in all_sums for name in sums)
    return {
        name: (
            sum(sums[name][0] for sums in all_sums if name in sums),
            sum(sums[name][1] for sums in all_sums if name in sums),
        )
        for name in names
    }


def means(sums: Sums) -> dict[str, float]:
    """Each sum divided; what was never counted is left out. Nats per token are reported as perplexity."""
    results = {name: total / count for name, (total, count) in sums.items() if count > 0}
    if NATS in results:
        # exp of more than about 709 overflows.
        return {"perplexity": math.exp(min(700.0, results.pop(NATS))), **results}
    return results
