"""The resumable order of samples.

The order is a pure function of (seed, epoch, position): the only state is the number of samples consumed so far, and
resuming reads no consumed sample again. Each epoch is a permutation computed index by index with a Feistel network
and cycle walking: it needs constant memory for any size of data, and gives the same order in every version of
Python, NumPy and PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from crashproof.records.bad_steps import DataWindow
from crashproof.rules.bad_steps.left_out import joined, position_after, windows_of

__all__ = ["DataOrder", "ResumableSampler"]

_ROUNDS = 12
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15

Indices = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOrder:
    """An endless order over a data set: every epoch is a separate shuffle, and batches may span epochs."""

    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"An order needs at least one sample, got {self.num_samples}.")

    def indices(self, position: int, count: int) -> list[int]:
        """The samples at `position` to `position + count - 1`, counted over all epochs."""
        places = np.arange(position, position + count, dtype=np.uint64)
        epochs, offsets = np.divmod(places, np.uint64(self.num_samples))
        found = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            found[of_epoch] = _permuted(offsets[of_epoch], self.num_samples, _round_keys(self.seed, int(epoch)))
        return [int(index) for index in found]

    def epoch(self, position: int) -> int:
        """Epochs that are complete at `position`."""
        return position // self.num_samples


class ResumableSampler(Sampler[int]):
    """A `DataOrder` for a `DataLoader`.

    Workers prefetch, so the training loop counts the samples that it consumed, and starts the next sampler there:
    `DataLoader(dataset, batch_size=8, sampler=ResumableSampler(order, start=checkpoint.dataset_position))`.
    """

    def __init__(
        self,
        order: DataOrder,
        *,
        start: int = 0,
        num_samples: int | None = None,
        left_out: Iterable[DataWindow] = (),
    ) -> None:
        """Draw from the sample after `start` consumed ones to the end of its epoch, or exactly `num_samples`.

        Args:
            order: The order of the samples.
            start: Samples consumed so far, of which those that are left out are none.
            num_samples: How many to draw, across epochs.
            left_out: Windows of the order that are never drawn: `session.data_left_out` of a run.
        """
        self._order = order
        self._start = start
        self._left_out = joined(left_out)
        self._num_samples = self._to_end_of_epoch() if num_samples is None else num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        for window in windows_of(self._start, self._num_samples, self._left_out):
            for position in range(window.first, window.end):
                yield from self._order.indices(position, 1)

    def _to_end_of_epoch(self) -> int:
        """The samples that are left of the epoch in which the next one is."""
        first = position_after(self._start, self._left_out)
        end = first + self._order.num_samples - first % self._order.num_samples
        gone = sum(min(each.end, end) - each.first for each in self._left_out if first <= each.first < end)
        return end - first - gone


def _permuted(offsets: Indices, num_samples: int, keys: list[np.uint64]) -> Indices:
    """The position of each offset in a shuffle of 0 … num_samples - 1.

    The network permutes the next even power of two; a value outside the range is encrypted again until it is inside,
    which preserves the permutation. On average this takes fewer than four rounds.
    """
    half_bits = np.uint64(max(1, (num_samples - 1).bit_length() + 1 >> 1))
    found = _encrypted(offsets, half_bits, keys)
    while (outside := found >= num_samples).any():
        found[outside] = _encrypted(found[outside], half_bits, keys)
    return found


def _encrypted(values: Indices, half_bits: np.uint64, keys: list[np.uint64]) -> Indices:
    """A balanced Feistel network: each round swaps the halves and mixes one into the other."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half_bits) | right


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, 2014), started from a mix of seed and epoch."""
    state = int(_mixed(np.array([seed % 2**64], dtype=np.uint64))[0]) + epoch * _GOLDEN
    states = np.array([(state + number * _GOLDEN) % 2**64 for number in range(1, _ROUNDS + 1)], dtype=np.uint64)
    return list(_mixed(_mixed(states) + np.uint64(epoch % 2**64)))


def _mixed(values: Indices) -> Indices:
    """The finalizer of SplitMix64: every input bit flips about half of the output bits. Overflow is intended."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
