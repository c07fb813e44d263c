"""Write the three snapshots of a run."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import msgspec

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import StorageError
from crashproof.records.lines.codec import encode, nonfinite_names
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import JournalMark, Manifest, ProgressFile, SessionFile
from crashproof.rules.summary import last_seen

__all__ = ["SnapshotWriter", "progress_file", "session_bytes"]

log = logging.getLogger("crashproof")


class SnapshotWriter:
    """Replaces snapshots atomically; if one cannot be written, the old one stays, and the log says so once."""

    def __init__(self, folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
        self._folder = folder
        self._disk = disk
        self.refusals: dict[Path, StorageError | OSError] = {}
        """Why a snapshot could not be replaced at the last try, by its path."""
        # The heartbeat and the caller's thread write the same names.
        self._lock = threading.Lock()

    def write_session(self, session_file: bytes) -> None:
        """Replace `session.json`; `session_bytes` makes the content."""
        self._write(self._folder.session, session_file)

    def write_manifest(self, session: TrainingSession, *, now: float) -> None:
        """Replace `checkpoints.json`."""
        manifest = Manifest(
            session_id=session.session_id,
            checkpoints=dict(session.checkpoints),
            checkpoints_beside=list(session.checkpoints_beside),
            last_checkpoint_step=session.last_checkpoint_step,
            saved_at=now,
        )
        self._write(self._folder.manifest, encode(manifest))

    def write_summary(self, summary: ProgressSummary, file: ProgressFile) -> None:
        """Replace `progress.json`; `file` has the fields besides those of the summary."""
        fields = msgspec.to_builtins(summary)
        content: dict[str, Any] = msgspec.to_builtins(file) | fields
        if nonfinite := nonfinite_names(fields):
            content["nonfinite"] = nonfinite
        self._write(self._folder.summary, encode(content))

    def _write(self, path: Path, content: bytes) -> None:
        try:
            with self._lock:
                write_bytes_atomically(path, content, disk=self._disk)
        except (StorageError, OSError) as error:
            # The journals hold everything that is in a snapshot, so that it may be old.
            if not self.refusals:
                log.warning("%s could not be replaced, and the old one stays: %s", path, error)
            self.refusals[path] = error
        else:
            self.refusals.pop(path, None)


def session_bytes(session: TrainingSession, marks: dict[str, JournalMark], *, now: float) -> bytes:
    """The content of `session.json`."""
    fields = {name: getattr(session, name) for name in TrainingSession.__struct_fields__}
    return encode(SessionFile(saved_at=now, journals=marks, **fields))


def progress_file(session: TrainingSession, marks: dict[str, JournalMark] | None, *, now: float) -> ProgressFile:
    """What `progress.json` says besides the summary; `marks` is None if they do not include all of the session."""
    return ProgressFile(
        saved_at=now,
        last_seen=last_seen(session),
        journals=None if marks is None else {name: mark.num_bytes for name, mark in marks.items()},
    )
