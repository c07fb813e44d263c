"""The newest losses at several scales.

A window is a share of the run that ends now: all of it, a half, a quarter and so on. Each is reduced to at most 32
blocks of consecutive updates, so that a window of a million updates is judged by the same rules as one of a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crashproof.medians import median
from crashproof.records.session import LossBucket
from crashproof.rules.loss.buckets import noise_and_tail

__all__ = ["MAX_BLOCKS", "Block", "LossHistory"]

MAX_BLOCKS = 32


class Block(NamedTuple):
    """Consecutive updates: how many, their level, and the other numbers of a `LossBucket`."""

    num_updates: int
    level: float
    low: float
    high: float
    noise: float
    tail: float


class LossHistory:
    """All losses of a run: the newest as they are, the others in buckets."""

    def __init__(self, recent: Sequence[float], buckets: Sequence[LossBucket] = (), *, num_open: int = 0) -> None:
        """
        Args:
            recent: The newest losses.
            buckets: All losses but the last `num_open`, in buckets; those in `recent` are among them.
            num_open: The newest updates, which are in no bucket.
        """
        self.recent = recent
        self._buckets = buckets
        in_buckets = sum(bucket.num_updates for bucket in buckets) + num_open if buckets else 0
        self.num_updates = max(len(recent), in_buckets)
        self._all = list(_blocks_of(buckets, recent[len(recent) - num_open :] if num_open else []))

    def blocks(self, newest: int, *, skip: int = 0, least_size: int = 1) -> list[Block]:
        """At most 32 blocks of the newest updates, oldest first; without the `skip` newest of them."""
        newest = min(newest, self.num_updates)
        size = max(least_size, math.ceil((newest - skip) / MAX_BLOCKS))
        if newest <= len(self.recent):
            end = len(self.recent) - skip
            parts = _parts_of(self.recent[len(self.recent) - newest : end], size)
        else:
            parts = self._bucket_parts(newest, skip, size)
        return [block for block in parts if block is not None]

    def _bucket_parts(self, newest: int, skip: int, size: int) -> Iterator[Block | None]:
        """Neighbouring buckets joined to blocks of about `size` updates."""
        age = self.num_updates
        group: list[Block] = []
        num_grouped = 0
        for block in self._all:
            middle = age - block.num_updates / 2
            age -= block.num_updates
            if not skip <= middle <= newest:
                continue
            group.append(block)
            num_grouped += block.num_updates
            if num_grouped >= size:
                yield _joined(group)
                group, num_grouped = [], 0
        if group:
            yield _joined(group)


def _blocks_of(buckets: Sequence[LossBucket], newest: Sequence[float]) -> Iterator[Block]:
    """All buckets, and the newest losses, as blocks; those without a level have NaN."""
    for bucket in buckets:
        level = math.nan if bucket.level is None else bucket.level
        yield Block(bucket.num_updates, level, bucket.low, bucket.high, bucket.noise, bucket.tail)
    if newest:
        yield _block_of(newest) or Block(len(newest), math.nan, 0.0, 0.0, 0.0, 0.0)


def _parts_of(losses: Sequence[float], size: int) -> Iterator[Block | None]:
    # From the end: all blocks are full ones, and the oldest few losses may be left out.
    for start in range(len(losses) % size, len(losses), size):
        yield _block_of(losses[start : start + size])


def _block_of(losses: Sequence[float]) -> Block | None:
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return None
    level = median(finite)
    return Block(len(losses), level, level, level, *noise_and_tail(finite))


def _joined(blocks: Sequence[Block]) -> Block | None:
    known = [block for block in blocks if not math.isnan(block.level)]
    if not known:
        return None
    total = sum(block.num_updates for block in known)
    return Block(
        sum(block.num_updates for block in blocks),
        sum(block.level * (block.num_updates / total) for block in known),
        min(block.low for block in known),
        max(block.high for block in known),
        sum(block.noise / len(known) for block in known),
        sum(block.tail / len(known) for block in known),
    )
