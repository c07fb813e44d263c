"""Fill a tracker with a run's canonical history, each step once.

What a tracker has already is asked first, so a second replay adds nothing. Where the run went back behind a step that
the tracker has (a resume after a kill), that step and those after it were superseded; as most trackers cannot take
back a single point, the tracker then forgets the run and is filled anew.

So that this stays rare, a replay beside a live run holds back the steps that a restart would compute again: those
behind the newest checkpoint. They follow with the next checkpoint, or when the run is complete.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from crashproof.disk.journal import Line, line_continues, line_crc, scan
from crashproof.exporters.exporter import RunFacts, Sent, Sink
from crashproof.reading.run_reader import RunReader
from crashproof.records.codec import decode_line
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import JournalMark
from crashproof.rules.history import Rewinds
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["Replayed", "following", "replay"]

log = logging.getLogger("crashproof")

_UPDATES_AT_ONCE = 1000
_decoder = msgspec.json.Decoder(MetricsSnapshot)


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay has done."""

    num_added: int
    last_step: int
    """The highest step that the tracker has now."""
    has_begun_anew: bool
    """Whether it had steps that were superseded since."""


def replay(run_dir: str | Path, sink: Sink, *, holds_back: bool = False) -> Replayed:
    """Bring a tracker up to date with a run; the run may be live, and is not changed.

    Args:
        run_dir: The run's output folder.
        sink: The tracker, such as `TensorBoardSink("logs")`.
        holds_back: Leave out, while the run is not complete, the steps behind its newest checkpoint.

    Raises:
        NotARun: there is none.
        NewerFormat: it was written by a newer version.
        MissingExtra: the tracker is not installed.
        OtherRun: the tracker's folder belongs to another run.
    """
    reader = RunReader.open(Path(run_dir))
    session = reader.session()
    facts = RunFacts(
        name=reader.folder.root.name,
        session_id=session.session_id,
        start_time=session.start_time,
        config=session.config,
    )
    sent = sink.open(facts)
    try:
        return _brought_up_to_date(reader, sink, sent, highest=_highest(session) if holds_back else None)
    finally:
        sink.close()


@contextmanager
def following(fill: Callable[[], object], *, name: str, seconds_between: float = 10.0) -> Iterator[None]:
    """Call `fill` again and again beside a loop, from a thread, and once more at the end.

    Where it fails, that is told once in the log, with `name`; the loop goes on, and the next call catches up.

    Example: `with following(lambda: replay("run", TensorBoardSink("logs"), holds_back=True), name="TensorBoard"):`
    """
    stopped = threading.Event()
    attempts = _Attempts(fill, name)

    def keep_up() -> None:
        while not stopped.wait(seconds_between):
            attempts.make()

    thread = threading.Thread(target=keep_up, name="crashproof-replay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
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
            # Whatever a tracker's library raises: it must not end a training.
            if not self._has_failed:
                log.warning(
                    "%s cannot be filled (%s: %s); the run goes on, and it catches up later.",
                    self._name,
                    type(error).__name__,
                    without_secrets(str(error)),
                )
            self._has_failed = True
        else:
            if self._has_failed:
                log.warning("%s is filled again.", self._name)
            self._has_failed = False


def _highest(session: TrainingSession) -> int:
    """The step behind which a restart computes again."""
    if session.steps_completed >= session.total_steps_target:
        return session.steps_completed
    return session.last_checkpoint_step or 0


def _brought_up_to_date(reader: RunReader, sink: Sink, sent: Sent, *, highest: int | None) -> Replayed:
    has_begun_anew = _is_superseded(reader, sent)
    if has_begun_anew:
        sink.forget()
        sent = Sent()
    num_added, last_step = 0, sent.last_step
    for updates, mark in _standing(reader, sent, highest):
        sink.add(updates, mark)
        num_added += len(updates)
        last_step = updates[-1].step
    return Replayed(num_added=num_added, last_step=last_step, has_begun_anew=has_begun_anew)


def _is_superseded(reader: RunReader, sent: Sent) -> bool:
    """Whether the run went back behind a step that was sent, or its journal is another one by now."""
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
    """What is to be added, in portions, each with where the journal is behind it."""
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
