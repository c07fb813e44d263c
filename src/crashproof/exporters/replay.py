"""Replay a run's history into a tracker.

The tracker first reports what it already has, so a second replay adds nothing. If the run resumed before a step that
the tracker has, that step and those after it were superseded; as most trackers cannot delete single points, the
tracker then forgets the run and receives it again.

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
from crashproof.exporters.exporter import Exporter, RunFacts, Sent
from crashproof.reading.run_reader import RunReader
from crashproof.records.codec import decode_line
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import JournalMark
from crashproof.rules.history import Rewinds
from crashproof.rules.secrets.texts import without_secrets
from crashproof.threads import try_to_start

__all__ = ["Replayed", "following", "replay"]

log = logging.getLogger("crashproof")

_UPDATES_AT_ONCE = 1000
_decoder = msgspec.json.Decoder(MetricsSnapshot)


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a replay."""

    num_added: int
    last_step: int
    """The highest step that the tracker has now."""
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
    session = reader.session()
    facts = RunFacts(
        name=reader.folder.root.name,
        session_id=session.session_id,
        start_time=session.start_time,
        config=session.config,
    )
    sent = exporter.open(facts)
    try:
        return _bring_up_to_date(reader, exporter, sent, highest=_highest(session) if holds_back else None)
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


def _highest(session: TrainingSession) -> int:
    """The step after which a restart recomputes."""
    if session.steps_completed >= session.total_steps_target:
        return session.steps_completed
    return session.last_checkpoint_step or 0


def _bring_up_to_date(reader: RunReader, exporter: Exporter, sent: Sent, *, highest: int | None) -> Replayed:
    has_begun_anew = _is_superseded(reader, sent)
    if has_begun_anew:
        exporter.forget()
        sent = Sent()
    num_added, last_step = 0, sent.last_step
    for updates, mark in _standing(reader, sent, highest):
        exporter.add(updates, mark)
        num_added += len(updates)
        last_step = updates[-1].step
    return Replayed(num_added=num_added, last_step=last_step, has_begun_anew=has_begun_anew)


def _is_superseded(reader: RunReader, sent: Sent) -> bool:
    """Whether the run resumed before a step that was sent, or its journal was replaced."""
    has = max(sent.last_step, sent.reached)
    if not line_continues(reader.folder.metrics, sent.mark):
        return has > 0
    newest = sent.last_step
    for _, update in _updates(reader, sent.mark.num_bytes):
        if update.step <= newest and update.step <= has:
            return True
        newest = update.step
    return False


def _standing(
    reader: RunReader, sent: Sent, highest: int | None
) -> Iterator[tuple[list[MetricsSnapshot], JournalMark]]:
    """Yield the updates to add in batches, each with the journal's mark after it."""
    rewinds = Rewinds()
    end = sent.mark.num_bytes
    for line, update in _updates(reader, sent.mark.num_bytes):
        rewinds.feed(update.step)
        end = line.end
    canonical = rewinds.canonical()
    updates: list[MetricsSnapshot] = []
    mark = sent.mark
    for line, update in _updates(reader, sent.mark.num_bytes):
        if line.offset >= end:
            break
        if not canonical.stands(update.step) or update.step <= sent.last_step:
            continue
        if highest is not None and update.step > highest:
            break
        updates.append(update)
        mark = JournalMark(num_bytes=line.end, last_line_crc=line_crc(line.content))
        if len(updates) >= _UPDATES_AT_ONCE:
            yield updates, mark
            updates = []
    if updates:
        yield updates, mark


def _updates(reader: RunReader, start: int) -> Iterator[tuple[Line, MetricsSnapshot]]:
    for line in scan(reader.folder.metrics, start=start):
        if isinstance(line, Line):
            yield line, decode_line(reader.folder.metrics, line.content, _decoder)
