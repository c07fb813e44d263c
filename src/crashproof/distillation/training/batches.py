"""Make batches before the loop takes them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from crashproof.distillation.data.text_data import Batch, TrainingData
from crashproof.distillation.settings.train import TrainConfig
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.sampler import DataOrder
from crashproof.records.bad_steps import DataWindow
from crashproof.rules.bad_steps.left_out import windows_of
from crashproof.threads import run_or_submit

__all__ = ["StepBatches", "StepData"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepData:
    """The data of one optimizer step."""

    batches: list[Batch]
    """This process's part of each forward pass, on the CPU."""
    counts: dict[str, int]
    """The divisors of the losses, over all processes."""
    indices: list[int]
    """This process's samples, in their order."""
    all_indices: list[int]
    """Those of all processes, forward pass by forward pass."""
    data: list[DataWindow]
    """Where these are in the order of samples."""


class StepBatches:
    """The data of each step in turn; a thread makes the next ones.

    All processes share one order of samples: a forward pass takes the next `batch_size` of it, and each process an
    equal part of those, so any number of processes reads the same samples.
    """

    def __init__(
        self,
        data: TrainingData,
        train: TrainConfig,
        ranks: Ranks,
        *,
        first_sample: int,
        ahead_steps: int,
        left_out: Sequence[DataWindow] = (),
    ) -> None:
        """With `ahead_steps` 0, each step's data are made when they are taken.

        `first_sample` counts the samples that were consumed, of which those in `left_out` are none.
        """
        self._data = data
        self._train = train
        self._ranks = ranks
        self._order = DataOrder(num_samples=len(data), seed=train.seed)
        self._next_sample = first_sample
        self._left_out = left_out
        self._ahead_steps = ahead_steps
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crashproof-data") if ahead_steps else None
        self._upcoming: deque[Future[StepData]] = deque()

    @property
    def waits_for_others(self) -> bool:
        """Whether a step's data are made by all processes together."""
        return self._ranks.num_ranks > 1 and not self._data.is_prefetchable

    @property
    def samples_per_step(self) -> int:
        """Samples per optimizer step, over all processes."""
        return self._train.batch_size * self._train.gradient_accumulation

    def take(self) -> StepData:
        """Return the data of the next step; raises whatever making them raises."""
        if self._pool is None:
            return self._make(self._advance())
        while len(self._upcoming) <= self._ahead_steps:
            self._upcoming.append(run_or_submit(self._pool, partial(self._make, self._advance())))
        return self._upcoming.popleft().result()

    def close(self) -> None:
        """Finish the data that are being made, and make no more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _advance(self) -> int:
        first = self._next_sample
        self._next_sample += self.samples_per_step
        return first

    def _make(self, first_sample: int) -> StepData:
        size = self._train.batch_size // self._ranks.num_ranks
        offset = self._ranks.rank * size
        counts: Counter[str] = Counter()
        batches: list[Batch] = []
        own: list[int] = []
        all_indices: list[int] = []
        for place in range(self._train.gradient_accumulation):
            of_pass = self._indices(first_sample + place * self._train.batch_size, self._train.batch_size)
            of_rank = of_pass[offset : offset + size]
            batches.append(self._data.batch(of_rank))
            counts.update(self._data.counts(of_pass))
            own += of_rank
            all_indices += of_pass
        return StepData(
            batches=batches,
            counts=dict(counts),
            indices=own,
            all_indices=all_indices,
            data=windows_of(first_sample, self.samples_per_step, self._left_out),
        )

    def _indices(self, consumed: int, count: int) -> list[int]:
        windows = windows_of(consumed, count, self._left_out)
        return [index for each in windows for index in self._order.indices(each.first, each.end - each.first)]
