"""Replay a run's history into a tracker.

The tracker first reports what it already has, so a second replay adds nothing. If the run resumed before a step that
the tracker has, that step and those after it were superseded; as most trackers cannot delete single points, the
tracker then forgets the run and receives it again. The same if an evaluation that it has was superseded or repeated.

To keep this rare, a replay beside a live run can hold back the steps that a restart would recompute: those after the
newest checkpoint. They follow with the next checkpoint, or when the run is complete.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from crashproof.disk.journal import Line, line_continues, line_crc, scan
from crashproof.exporters.exporter import Exporter, Point, RunFacts, Sent, named_values, spelled
from crashproof.exporters.names import TrackerNames
from crashproof.reading.run_reader import RunReader
from crashproof.records.lines.codec import decode_line
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import Evaluation, TrainingSession
from crashproof.records.snapshots import JournalMark
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.history import CanonicalFilter, Rewinds, are_parts, joined_by_step, merged_parts
from crashproof.rules.naming.evaluations import evaluation_names
from crashproof.rules.secrets.texts import without_secrets
from crashproof.threads import try_to_start

__all__ = ["Replayed", "following", "replay"]

log = logging.getLogger("crashproof")

_POINTS_AT_ONCE = 1000
_decoder = LazyDecoder[MetricsSnapshot](MetricsSnapshot)


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a replay."""

    num_added: int
    """Updates."""
    num_evaluations_added: int = 0
    """Steps whose results on held-out data were added."""
    last_step: int | None
    """The highest step of an update that the tracker has now; None if it has none."""
    has_begun_anew: bool
    """Whether it started over, because it had superseded steps."""


def replay(run_dir: str | Path, exporter: Exporter, *, holds_back: bool = False) -> Replayed:
    """Bring a tracker up to date with a run; the run may be live, and is not changed.

    Args:
        run_dir: The run's output folder.
        exporter: The tracker's, such as `TensorBoardSink("logs")`.
        holds_back: Leave out the steps after the newest checkpoint until the run is complete.

    Raises:
        NotARun: the folder holds no run.
        NewerFormat: a newer version wrote the run.
        MissingExtra: the tracker is not installed.
        OtherRun: the destination holds another run.
    """
    reader = RunReader.open(Path(run_dir))
    is_live = reader.holder() is not None
    session = reader.session()
    facts = RunFacts(
        name=reader.folder.root.name,
        session_id=session.session_id,
        start_time=session.start_time,
        config=session.config,
    )
    sent = exporter.open(facts)
    try:
        limits = _Limits(
            highest=_highest(session) if holds_back else None,
            # Another part of the newest update may follow, which no tracker could add to it.
            holds_newest=is_live and session.parts_merged > 0,
        )
        return _bring_up_to_date(reader, exporter, sent, limits)
    finally:
        exporter.close()


@contextmanager
def following(fill: Callable[[], object], *, name: str, seconds_between: float = 10.0) -> Iterator[None]:
    """Call `fill` periodically from a thread beside a loop, and once more at the end.

    A failure is logged once, with `name`; the loop goes on, and the next call catches up.

    Example: `with following(lambda: replay("run", TensorBoardSink("logs"), holds_back=True), name="TensorBoard"):`
    """
    stopped = threading.Event()
    attempts = _Attempts(fill, name)

    def keep_up() -> None:
        while not stopped.wait(seconds_between):
            attempts.make()

    thread = threading.Thread(target=keep_up, name="crashproof-replay", daemon=True)
    is_started = try_to_start(thread)
    try:
        yield
    finally:
        stopped.set()
        if is_started:
            thread.join()
        attempts.make()


class _Attempts:
    def __init__(self, fill: Callable[[], object], name: str) -> None:
        self._fill = fill
        self._name = name
        self._has_failed = False

    def make(self) -> None:
        try:
            self._fill()
        except Exception as error:
            # A tracker's library may raise anything; it must not end a training run.
            if not self._has_failed:
                log.warning(
                    "Export to %s failed (%s: %s). The run goes on; the next export catches up.",
                    self._name,
                    type(error).__name__,
                    without_secrets(str(error)),
                )
            self._has_failed = True
        else:
            if self._has_failed:
                log.warning("Export to %s works again.", self._name)
            self._has_failed = False


class _Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What is left to a later replay."""

    highest: int | None
    """The last step to export; None: all."""
    holds_newest: bool
    """Whether to leave out the newest update."""


def _highest(session: TrainingSession) -> int:
    """The step after which a restart recomputes; -1 if it recomputes all."""
    if session.is_finished:
        return session.steps_completed
    newest = CheckpointCatalog(session).newest()
    return -1 if newest is None else newest.next_step - 1


def _bring_up_to_date(reader: RunReader, exporter: Exporter, sent: Sent, limits: _Limits) -> Replayed:
    names = exporter.names
    evaluations = _named_evaluations(reader, names)
    has_begun_anew = _is_superseded(reader, sent) or _are_changed(evaluations, sent)
    if not has_begun_anew and not exporter.takes_late_points:
        has_begun_anew = _come_late(reader, evaluations, sent, limits)
    if has_begun_anew:
        exporter.forget()
        sent = Sent()
    num_updates = num_evaluations = 0
    for points, sent_then in _batches(_points(reader, evaluations, names, sent, limits), sent):
        exporter.add(points, sent_then)
        sent = sent_then
        num_updates += sum(bool(each.values) for each in points)
        num_evaluations += sum(bool(each.evaluation) for each in points)
    names.report()
    return Replayed(
        num_added=num_updates,
        num_evaluations_added=num_evaluations,
        last_step=sent.last_step,
        has_begun_anew=has_begun_anew,
    )


def _named_evaluations(reader: RunReader, names: TrackerNames) -> list[Evaluation]:
    """The evaluations that stand, by the names that their results have in the tracker."""
    standing = reader.evaluations()
    conventional = evaluation_names(
        (name for each in standing for name in each.results), separator=names.rule.separator
    )
    return [
        msgspec.structs.replace(
            each, results={names[conventional[name]]: value for name, value in each.results.items()}
        )
        for each in standing
    ]


def _is_superseded(reader: RunReader, sent: Sent) -> bool:
    """Whether the run resumed before a step that was sent, or its journal was replaced."""
    if not line_continues(reader.folder.metrics, sent.mark):
        return sent.highest_step >= 0
    newest = -1 if sent.last_step is None else sent.last_step
    for _, update in merged_parts(_updates(reader, sent.mark.num_bytes)):
        if update.step <= newest and update.step <= sent.highest_step:
            return True
        newest = update.step
    return False


def _are_changed(evaluations: list[Evaluation], sent: Sent) -> bool:
    """Whether a result that was sent stands no more: superseded, measured again, or under another name now."""
    now = {each.step: each.results for each in evaluations}
    return any(
        name not in now.get(step, {}) or spelled(now[step][name]) != value
        for step, results in sent.evaluations.items()
        for name, value in results.items()
    )


def _come_late(reader: RunReader, evaluations: list[Evaluation], sent: Sent, limits: _Limits) -> bool:
    """Whether there is something new at or below the highest step that was sent."""
    highest = max(sent.highest_step, *sent.evaluations, -1)
    if highest < 0:
        return False
    new = [each.step for each in evaluations if _new_results(each, sent, limits)]
    first_update = next((update.step for _, update in _standing(reader, sent, limits)), highest + 1)
    return min([*new, first_update]) <= highest


def _new_results(evaluation: Evaluation, sent: Sent, limits: _Limits) -> dict[str, float]:
    if limits.highest is not None and evaluation.step > limits.highest:
        return {}
    known = sent.evaluations.get(evaluation.step, {})
    return {name: value for name, value in evaluation.results.items() if name not in known}


def _points(
    reader: RunReader, evaluations: list[Evaluation], names: TrackerNames, sent: Sent, limits: _Limits
) -> Iterator[tuple[Point, JournalMark | None]]:
    """Yield what the tracker does not have, in the order of steps; each update with the journal's mark after it."""
    new = [(each, results) for each in evaluations if (results := _new_results(each, sent, limits))]
    new_evaluations = [msgspec.structs.replace(each, results=results) for each, results in new]
    updates = _standing(reader, sent, limits)
    for found, evaluation in joined_by_step(updates, new_evaluations, step_of=lambda each: each[1].step):
        results = {} if evaluation is None else evaluation.results
        if found is not None:
            line, update = found
            values = {names[name]: value for name, value in named_values(update)}
            mark = JournalMark(num_bytes=line.end, last_line_crc=line_crc(line.content))
            yield Point(step=update.step, timestamp=update.timestamp, values=values, evaluation=results), mark
        elif evaluation is not None:  # pragma: no branch - one of the two is there.
            point = Point(step=evaluation.step, timestamp=evaluation.timestamp, values={}, evaluation=results)
            yield point, None


def _batches(points: Iterator[tuple[Point, JournalMark | None]], sent: Sent) -> Iterator[tuple[list[Point], Sent]]:
    """Yield the points in batches, each with what the tracker has after it."""
    batch: list[Point] = []
    for point, mark in points:
        batch.append(point)
        sent = Sent(
            mark=sent.mark if mark is None else mark,
            last_step=sent.last_step if mark is None else point.step,
            evaluations=sent.with_evaluation(point),
        )
        if len(batch) >= _POINTS_AT_ONCE:
            yield batch, sent
            batch = []
    if batch:
        yield batch, sent


def _standing(reader: RunReader, sent: Sent, limits: _Limits) -> Iterator[tuple[Line, MetricsSnapshot]]:
    """Yield the updates to add, each with its last line."""
    rewinds = Rewinds()
    end = sent.mark.num_bytes
    newest: MetricsSnapshot | None = None
    for line, update in _updates(reader, sent.mark.num_bytes):
        rewinds.feed(update.step, update.attempt)
        end, newest = line.end, update
    for line, update in merged_parts(_canonical(reader, rewinds.canonical(), sent.mark.num_bytes, end)):
        if sent.last_step is not None and update.step <= sent.last_step:
            continue
        if limits.highest is not None and update.step > limits.highest:
            break
        if limits.holds_newest and newest is not None and are_parts(update, newest):
            break
        yield line, update


def _canonical(
    reader: RunReader, canonical: CanonicalFilter, start: int, end: int
) -> Iterator[tuple[Line, MetricsSnapshot]]:
    for line, update in _updates(reader, start):
        if line.offset >= end:
            break
        if canonical.stands(update.step):
            yield line, update


def _updates(reader: RunReader, start: int) -> Iterator[tuple[Line, MetricsSnapshot]]:
    for line in scan(reader.folder.metrics, start=start):
        if isinstance(line, Line):
            yield line, decode_line(reader.folder.metrics, line.content, _decoder)
