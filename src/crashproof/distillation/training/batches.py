"""Batches, made before the loop wants them."""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from crashproof.distillation.data.text_data import Batch, TrainingData
from crashproof.distillation.settings.train import TrainConfig
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.sampler import DataOrder
from crashproof.threads import run_or_submit

__all__ = ["StepBatches", "StepData"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepData:
    """What one optimizer step learns from."""

    batches: list[Batch]
    """This process's part of each forward pass, on the CPU."""
    counts: dict[str, int]
    """What the losses are divided by, over all processes."""
    indices: list[int]
    """The samples of this process, in their order."""


class StepBatches:
    """The data of one step after the other, the next ones made in a thread.

    The order of samples is one for all processes: a forward pass takes the next `batch_size` of it, and each process
    an equal part of those, so that any number of processes reads what any other would.
    """

    def __init__(
        self, data: TrainingData, train: TrainConfig, ranks: Ranks, *, first_sample: int, ahead_steps: int
    ) -> None:
        """Without `ahead_steps` each is made when it is asked for."""
        self._data = data
        self._train = train
        self._ranks = ranks
        self._order = DataOrder(num_samples=len(data), seed=train.seed)
        self._next_sample = first_sample
        self._ahead_steps = ahead_steps
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crashproof-data") if ahead_steps else None
        self._coming: deque[Future[StepData]] = deque()
        self._num_left = train.steps

    @property
    def samples_a_step(self) -> int:
        """Over all processes."""
        return self._train.batch_size * self._train.gradient_accumulation

    def take(self) -> StepData:
        """The data of the next step; raises whatever making them raises."""
        if self._pool is None:
            return self._made(self._advance())
        while len(self._coming) <= self._ahead_steps:
            self._coming.append(run_or_submit(self._pool, partial(self._made, self._advance())))
        return self._coming.popleft().result()

    def close(self) -> None:
        """Let what is being made come to its end, and make no more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _advance(self) -> int:
        first = self._next_sample
        self._next_sample += self.samples_a_step
        return first

    def _made(self, first_sample: int) -> StepData:
        size = self._train.batch_size // self._ranks.num_ranks
        of_rank = self._ranks.rank * size
        own = [
            self._order.indices(first_sample + place * self._train.batch_size + of_rank, size)
            for place in range(self._train.gradient_accumulation)
        ]
        batches = [self._data.batch(indices) for indices in own]
        counts: Counter[str] = Counter()
        for place in range(self._train.gradient_accumulation):
            first = first_sample + place * self._train.batch_size
            counts.update(self._data.counts(self._order.indices(first, self._train.batch_size)))
        return StepData(batches=batches, counts=dict(counts), indices=[index for each in own for index in each])
