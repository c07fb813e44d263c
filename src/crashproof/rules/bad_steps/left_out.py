"""Leave windows of data out of an order of samples.

Samples are counted in two ways: by their *position* in the order, and by how many a run has *consumed*. Without
windows these are the same; a window shifts all that comes behind it. Neither depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crashproof.records.bad_steps import DataWindow

__all__ = ["joined", "position_after", "windows_of"]


def joined(windows: Iterable[DataWindow]) -> list[DataWindow]:
    """The same samples as windows in order, of which none is empty and no two touch."""
    found: list[DataWindow] = []
    for each in sorted(windows, key=lambda window: window.first):
        if each.end <= each.first:
            continue
        if found and each.first <= found[-1].end:
            found[-1] = DataWindow(found[-1].first, max(found[-1].end, each.end))
        else:
            found.append(each)
    return found


def position_after(consumed: int, left_out: Sequence[DataWindow]) -> int:
    """The position of the next sample, where so many are consumed; `left_out` is as `joined` returns it."""
    position = consumed
    for each in left_out:
        if position < each.first:
            break
        position += each.end - each.first
    return position


def windows_of(consumed: int, count: int, left_out: Sequence[DataWindow]) -> list[DataWindow]:
    """Where the next `count` samples are, in their order."""
    found: list[DataWindow] = []
    while count > 0:
        first = position_after(consumed, left_out)
        gap = min((each.first - first for each in left_out if each.first > first), default=count)
        taken = min(count, gap)
        found.append(DataWindow(first, first + taken))
        consumed, count = consumed + taken, count - taken
    return found
