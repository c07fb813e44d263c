"""The canonical history of many attempts.

A resumed attempt computes steps again that an earlier one had reached. In the order of the journal, **a line for
step *s* supersedes every earlier line for step *s* or beyond**; what is left is the canonical history: each step
once, in order, the newest attempt's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["CanonicalFilter", "Rewinds", "losses_agree", "superseded_from"]


@dataclass(slots=True)
class Rewinds:
    """The places where a journal goes back to an earlier step; `feed` it the step of every line first.

    Memory grows with the number of rewinds, not of lines.
    """

    _places: list[tuple[int, int]] = field(default_factory=list)
    """(index of the line, its step) of each line whose step is not above that of the line before it."""
    _num_lines: int = 0
    _newest: float = -math.inf

    def feed(self, step: int) -> None:
        """Add the next line."""
        if step <= self._newest:
            self._places.append((self._num_lines, step))
        self._newest = step
        self._num_lines += 1

    def canonical(self) -> CanonicalFilter:
        """The filter for a second pass over the same lines."""
        return CanonicalFilter(self._places)


class CanonicalFilter:
    """Decides, line by line in order, which lines belong to the canonical history."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self._indices = [index for index, _ in places]
        # For each rewind the lowest step that it or a later one goes back to.
        self._lowest: list[float] = [math.inf] * (len(places) + 1)
        for number in range(len(places) - 1, -1, -1):
            self._lowest[number] = min(places[number][1], self._lowest[number + 1])
        self._line = 0
        self._next = 0

    def stands(self, step: int) -> bool:
        """Whether the next line of the journal, which is for `step`, belongs to the canonical history."""
        while self._next < len(self._indices) and self._indices[self._next] <= self._line:
            self._next += 1
        self._line += 1
        return step < self._lowest[self._next]


def superseded_from(canonical_steps: Sequence[int], step: int) -> int:
    """How many entries of a canonical history stay when a line for `step` arrives."""
    return bisect_left(canonical_steps, step)


def losses_agree(before: float, now: float) -> bool:
    """Whether two losses are the same number, bit for bit; NaN agrees with NaN."""
    return before == now or (math.isnan(before) and math.isnan(now))
