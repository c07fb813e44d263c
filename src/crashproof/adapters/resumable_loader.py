"""A data loader that resumes in mid-epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, cast

import torch
from torch.utils.data import DataLoader, Dataset

from crashproof.errors import ConfigError
from crashproof.pytorch.sampler import DataOrder, ResumableSampler

__all__ = ["ResumableLoader"]


class ResumableLoader:
    """Batches in an order that can be resumed, also in mid-epoch.

    The order is a function of seed and position alone, see `DataOrder`. Lightning saves the position in its
    checkpoints and restores it: `trainer.fit(model, ResumableLoader(dataset, batch_size=8, seed=7))`.
    """

    def __init__(self, dataset: Dataset[Any], *, batch_size: int, seed: int, **options: Any) -> None:
        """`options` are those of `torch.utils.data.DataLoader`, such as `num_workers` or `collate_fn`."""
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._options = options
        self._order = DataOrder(num_samples=len(cast(Any, dataset)), seed=seed)
        self._position = 0
        self.before_first_batch: Callable[[], None] | None = None
        """Called once, when the next batch is fetched: there a resumed run continues to draw random numbers."""

    def __len__(self) -> int:
        return math.ceil(self._order.num_samples / self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches up to the end of the epoch; draws nothing from the global random generators."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._require_alone(torch.distributed.get_world_size())
        if self.before_first_batch is not None:
            begin, self.before_first_batch = self.before_first_batch, None
            begin()
        start = self._position
        end = (self._order.epoch(start) + 1) * self._order.num_samples
        batches = DataLoader(
            self._dataset,
            batch_size=self._batch_size,
            sampler=ResumableSampler(self._order, start=start),
            generator=torch.Generator().manual_seed(self._seed + start),
            **self._options,
        )
        for batch in batches:
            # Counted here because workers fetch ahead.
            self._position = min(self._position + self._batch_size, end)
            yield batch

    @property
    def sampler(self) -> Self:
        """The object whose `set_epoch` Lightning calls."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Skip to an epoch if the one before it was cut short."""
        self._position = max(self._position, epoch * self._order.num_samples)

    def state_dict(self) -> dict[str, int]:
        """The position: the number of samples yielded so far."""
        return {"position": self._position}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Continue at a position."""
        self._position = state_dict["position"]

    def _require_alone(self, num_processes: int) -> None:
        if num_processes > 1:
            raise ConfigError(
                f"A ResumableLoader feeds one process, and there are {num_processes}.",
                hint="Use torchdata's StatefulDataLoader with a DistributedSampler.",
            )
