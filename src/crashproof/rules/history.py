"""The canonical history of many attempts.

A resumed attempt computes steps again that an earlier one had reached. In the order of the journal, **a line for
step *s* supersedes every earlier line for step *s* or beyond**; what is left is the canonical history: each step
once, in order, the newest attempt's.

One exception: **lines of one step that follow each other within one attempt are parts of one update**, as where the
two losses of a GAN are reported one after the other. The journal has each part; readers merge them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from crashproof.records.events import EvaluationRecorded
from crashproof.records.lines.codec import nonfinite_names
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import Evaluation, Timeline

__all__ = [
    "CanonicalFilter",
    "Rewinds",
    "are_parts",
    "evaluation_of",
    "joined_by_step",
    "losses_agree",
    "merged_parts",
    "merged_updates",
    "standing_evaluations",
    "superseded_from",
    "with_part",
]

T = TypeVar("T")


class Rewinds(msgspec.Struct):
    """The places where a journal goes back to an earlier step; `feed` it every line first.

    Memory grows with the number of rewinds, not of lines.
    """

    _places: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """(index of the line, its step) of each line that supersedes the one before it."""
    _num_lines: int = 0
    _newest: float = -math.inf
    _attempt: int = 0

    def feed(self, step: int, attempt: int) -> None:
        """Add the next line."""
        if step <= self._newest and (step, attempt) != (self._newest, self._attempt):
            self._places.append((self._num_lines, step))
        self._newest, self._attempt = step, attempt
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
    """How many entries of a canonical history stay when a line for `step` arrives that is no part of the newest."""
    return bisect_left(canonical_steps, step)


def are_parts(earlier: MetricsSnapshot, later: MetricsSnapshot) -> bool:
    """Whether two lines that follow each other are parts of one update."""
    return earlier.step == later.step and earlier.attempt == later.attempt


def with_part(update: MetricsSnapshot, part: MetricsSnapshot) -> MetricsSnapshot:
    """An update with a later part of it: what both name, the loss included, is the later one's.

    A part without a loss leaves that of the other. Samples and tokens are counted since the beginning of the run, so
    the higher count is the newer one.
    """
    has_no_loss = part.without_loss is True
    merged = msgspec.structs.replace(
        part,
        loss=update.loss if has_no_loss else part.loss,
        without_loss=update.without_loss if has_no_loss else msgspec.UNSET,
        loss_components=update.loss_components | part.loss_components,
        samples_processed=max(update.samples_processed, part.samples_processed),
        tokens_processed=max(update.tokens_processed, part.tokens_processed),
        throughput_samples_per_sec=_known(part.throughput_samples_per_sec, update.throughput_samples_per_sec),
        throughput_tokens_per_sec=_known(part.throughput_tokens_per_sec, update.throughput_tokens_per_sec),
        nonfinite=msgspec.UNSET,
    )
    if update.nonfinite is msgspec.UNSET and part.nonfinite is msgspec.UNSET:
        return merged
    return msgspec.structs.replace(merged, nonfinite=nonfinite_names(msgspec.to_builtins(merged)) or msgspec.UNSET)


def merged_parts(lines: Iterable[tuple[T, MetricsSnapshot]]) -> Iterator[tuple[T, MetricsSnapshot]]:
    """Merge the parts of each update; what comes with the last one stays with it."""
    waiting: tuple[T, MetricsSnapshot] | None = None
    for place, line in lines:
        if waiting is None:
            waiting = place, line
        elif are_parts(waiting[1], line):
            waiting = place, with_part(waiting[1], line)
        else:
            yield waiting
            waiting = place, line
    if waiting is not None:
        yield waiting


def merged_updates(lines: Iterable[MetricsSnapshot]) -> Iterator[MetricsSnapshot]:
    """Merge the parts of each update."""
    for _, update in merged_parts((None, line) for line in lines):
        yield update


def evaluation_of(event: EvaluationRecorded) -> Evaluation:
    """What an event says of an evaluation."""
    return Evaluation(
        step=event.step,
        attempt=event.attempt,
        timestamp=event.timestamp,
        results=event.results,
        nonfinite=event.nonfinite,
        rewinds=0 if isinstance(event.rewinds, msgspec.UnsetType) else event.rewinds,
    )


def standing_evaluations(evaluations: Iterable[Evaluation], timelines: Sequence[Timeline]) -> list[Evaluation]:
    """The evaluations that no later training has superseded, each step once, in order.

    Of several at one step all results stay; of a name that several have, the newest.
    """
    standing: dict[int, Evaluation] = {}
    for each in evaluations:
        if _is_superseded(each, timelines):
            continue
        results = (standing[each.step].results if each.step in standing else {}) | each.results
        names = nonfinite_names({"results": results}) or msgspec.UNSET
        standing[each.step] = msgspec.structs.replace(each, results=results, nonfinite=names)
    return [standing[step] for step in sorted(standing)]


def joined_by_step(
    updates: Iterable[T], evaluations: Iterable[Evaluation], *, step_of: Callable[[T], int]
) -> Iterator[tuple[T | None, Evaluation | None]]:
    """Bring updates and evaluations, both in the order of their steps, together: each step once, in order."""
    rest = iter(evaluations)
    next_one = next(rest, None)
    for update in updates:
        step = step_of(update)
        while next_one is not None and next_one.step < step:
            yield None, next_one
            next_one = next(rest, None)
        if next_one is not None and next_one.step == step:
            yield update, next_one
            next_one = next(rest, None)
        else:
            yield update, None
    while next_one is not None:
        yield None, next_one
        next_one = next(rest, None)


def losses_agree(before: float, now: float) -> bool:
    """Whether two losses are the same number, bit for bit; NaN agrees with NaN."""
    return before == now or (math.isnan(before) and math.isnan(now))


def _is_superseded(evaluation: Evaluation, timelines: Sequence[Timeline]) -> bool:
    own = (evaluation.attempt, evaluation.rewinds)
    return any((each.attempt, each.rewinds) > own and each.first_step <= evaluation.step for each in timelines)


def _known(newer: float | None, older: float | None) -> float | None:
    return older if newer is None else newer
