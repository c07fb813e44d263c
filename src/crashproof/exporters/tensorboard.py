"""Export a run to a TensorBoard log folder.

One event file per run, `events.out.tfevents.<start>.<session>.crashproof`, and beside it a note of its valid length.
What an interrupted replay has written beyond that length is truncated first, so no point appears twice. The first
record of a file that is written again tells TensorBoard to discard what it has read of the old one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from crashproof.disk.atomic import write_all, write_bytes_atomically
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.errors import OtherRun
from crashproof.exporters.exporter import Point, RunFacts, Sent
from crashproof.exporters.names import TrackerNames
from crashproof.optional_dependencies import missing_extra, require_versions
from crashproof.rules.naming.trackers import TENSORBOARD

__all__ = ["TensorBoardSink"]

_NOTE = "crashproof.json"
_FILE_VERSION = "brain.Event:2"


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """The valid length of an event file."""

    session_id: str
    file: str
    num_bytes: int
    sent: Sent


class TensorBoardSink:
    """A log folder of TensorBoard, for one run."""

    takes_late_points = True

    def __init__(self, log_dir: str | Path, *, disk: Disk = REAL_DISK) -> None:
        self.names = TrackerNames(TENSORBOARD)
        self._folder = Path(log_dir)
        self._disk = disk
        self._protos = _import_tensorboard()
        self._file: int | None = None
        self._note: _Note | None = None

    def open(self, run: RunFacts) -> Sent:
        """See `Exporter`."""
        self._disk.make_folders(self._folder)
        note = self._read_note()
        if note is not None and note.session_id != run.session_id:
            raise OtherRun(self._folder, found=note.session_id, wanted=run.session_id)
        name = f"events.out.tfevents.{int(run.start_time)}.{run.session_id}.crashproof"
        self._note = note or _Note(session_id=run.session_id, file=name, num_bytes=0, sent=Sent())
        path = self._folder / self._note.file
        with storage_errors(path):
            self._file = self._disk.open_to_append(path)
            # A killed replay left what is beyond the note: it is added again.
            found = os.fstat(self._file).st_size
            if found < self._note.num_bytes:
                self._note = _Note(session_id=run.session_id, file=name, num_bytes=0, sent=Sent())
            self._disk.truncate(self._file, self._note.num_bytes)
        return self._note.sent

    def forget(self) -> None:
        """See `Exporter`."""
        assert self._file is not None
        assert self._note is not None
        self._note = msgspec.structs.replace(self._note, num_bytes=0, sent=Sent())
        self._write_note(self._note)
        self._disk.truncate(self._file, 0)

    def add(self, points: Sequence[Point], sent: Sent) -> None:
        """See `Exporter`."""
        assert self._file is not None
        assert self._note is not None
        events, summaries, writer = self._protos
        target = _Target()
        records = writer.RecordWriter(target)
        if not self._note.num_bytes:
            first = points[0]
            head = events.Event(wall_time=first.timestamp, file_version=_FILE_VERSION)
            start = events.SessionLog(status=events.SessionLog.START)
            begin = events.Event(wall_time=first.timestamp, step=first.step, session_log=start)
            records.write(head.SerializeToString())
            records.write(begin.SerializeToString())
        for point in points:
            named = (point.values | point.evaluation).items()
            values = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in named]
            event = events.Event(wall_time=point.timestamp, step=point.step, summary=summaries.Summary(value=values))
            records.write(event.SerializeToString())
        content = bytes(target.content)
        with storage_errors(self._folder, needed_bytes=len(content)):
            write_all(self._file, content, self._disk)
            self._disk.sync(self._file)
        self._write_note(
            msgspec.structs.replace(self._note, num_bytes=self._note.num_bytes + len(content), sent=sent)
        )

    def close(self) -> None:
        """See `Exporter`."""
        if self._file is not None:
            self._disk.close(self._file)
            self._file = None

    def _read_note(self) -> _Note | None:
        try:
            return msgspec.json.decode((self._folder / _NOTE).read_bytes(), type=_Note)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            # Ours is written atomically, so another program wrote this one: export everything again.
            return None

    def _write_note(self, note: _Note) -> None:
        write_bytes_atomically(self._folder / _NOTE, msgspec.json.encode(note), disk=self._disk)
        self._note = note


class _Target:
    """The file interface that TensorBoard's record writer needs."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, content: bytes) -> None:
        self.content += content


def _import_tensorboard() -> tuple[Any, Any, Any]:
    require_versions("tensorboard", {"tensorboard": "2.19"})
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer import record_writer
    except ImportError:
        raise missing_extra("tensorboard") from None
    return event_pb2, summary_pb2, record_writer
