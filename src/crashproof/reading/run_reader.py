"""Read a run while another process writes it.

Takes no lock and changes nothing. What it reads may be a moment old, and is never torn: snapshots are replaced
atomically, and an unfinished last line of a journal is left for the next call.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from crashproof.disk.journal import Line, scan
from crashproof.disk.lock import Holder, holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NotARun
from crashproof.reading.run_state import EVENT_DECODER, METRICS_DECODER, find_damages, read_run
from crashproof.records.events import EvaluationRecorded, Event
from crashproof.records.lines.codec import decode_line
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import Evaluation, TrainingSession
from crashproof.rules.history import (
    CanonicalFilter,
    Rewinds,
    evaluation_of,
    joined_by_step,
    merged_updates,
    standing_evaluations,
)
from crashproof.rules.summary import progress_summary

__all__ = ["RunReader"]


class RunReader:
    """One run, read from outside."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @classmethod
    def open(cls, output_dir: Path) -> RunReader:
        """Open the run under an output folder, which may also be the progress folder itself.

        Raises:
            NotARun: the folder holds none.
        """
        for folder in (RunFolder.under(output_dir), RunFolder(output_dir)):
            if folder.holds_a_run:
                return cls(folder)
        raise NotARun(output_dir)

    def holder(self) -> Holder | None:
        """The live process that writes the run, or None."""
        return holder_of(self.folder.lock)

    def session(self) -> TrainingSession:
        """The session as of now."""
        state = read_run(self.folder)
        if state.session is None:
            raise NotARun(self.folder.root)
        return state.session

    def summary(self, *, now: float) -> dict[str, Any]:
        """The fields of `progress.json`, computed from the journals; `now` in seconds since 1970."""
        fields: dict[str, Any] = msgspec.to_builtins(self.progress(now=now))
        return fields

    def progress(self, *, now: float) -> ProgressSummary:
        """The same as typed data."""
        session = self.session()
        is_alive = self.holder() is not None
        return progress_summary(session, now=now, wall_clock_hours=session.wall_clock_hours, is_alive=is_alive)

    def history(self) -> Iterator[MetricsSnapshot]:
        """Yield the canonical history: each step once, in order, from the newest attempt; in constant memory."""
        rewinds = Rewinds()
        end = 0
        for line, update in self._updates():
            rewinds.feed(update.step, update.attempt)
            end = line.end
        return merged_updates(self._standing(rewinds.canonical(), end))

    def evaluations(self) -> list[Evaluation]:
        """The results on held-out data that no resume has superseded: each step once, in order.

        Of several evaluations of one step all results are there; of a name that several have, the newest.
        """
        recorded = (evaluation_of(each) for each in self.events() if isinstance(each, EvaluationRecorded))
        return standing_evaluations(recorded, self.session().timelines)

    def rows(self) -> Iterator[tuple[MetricsSnapshot | None, Evaluation | None]]:
        """Yield the canonical history and the evaluations together: each step once, in order."""
        return joined_by_step(self.history(), self.evaluations(), step_of=lambda update: update.step)

    def all_updates(self) -> Iterator[MetricsSnapshot]:
        """Yield every line in the order of writing: superseded ones too, and each part of an update by itself."""
        for _, update in self._updates():
            yield update

    def events(self) -> Iterator[Event]:
        """Yield all events, in order."""
        for line in scan(self.folder.events):
            if isinstance(line, Line):
                yield decode_line(self.folder.events, line.content, EVENT_DECODER)

    def problems(self) -> list[str]:
        """Describe every damage in the journals."""
        return [
            f"{name}, byte {piece.offset:,}: {piece.reason} ({piece.num_bytes:,} bytes)"
            for name, pieces in find_damages(self.folder).items()
            for piece in pieces
        ]

    def _standing(self, canonical: CanonicalFilter, end: int) -> Iterator[MetricsSnapshot]:
        for line, update in self._updates():
            if line.offset >= end:
                break
            if canonical.stands(update.step):
                yield update

    def _updates(self) -> Iterator[tuple[Line, MetricsSnapshot]]:
        for line in scan(self.folder.metrics):
            if isinstance(line, Line):
                yield line, decode_line(self.folder.metrics, line.content, METRICS_DECODER)
