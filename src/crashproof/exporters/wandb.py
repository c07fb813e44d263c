"""Export a run to offline W&B folders.

W&B ignores a step that it already has, so after a resume it would show the old, superseded losses. Each replay
writes one offline folder (`wandb sync` uploads them, in order, into one W&B run) and a note of how far all of them
go. An incomplete folder is removed and written again; a run with superseded steps, or with an evaluation that came
after later steps were written, starts over under another id, with the same name and group.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import OtherRun
from crashproof.exporters.exporter import Point, RunFacts, Sent
from crashproof.exporters.names import TrackerNames
from crashproof.optional_dependencies import missing_extra, require_versions
from crashproof.rules.naming.trackers import WANDB

__all__ = ["WandbSink"]

_NOTE = "crashproof-wandb.json"
_SECONDS_BETWEEN_LOOKS = 0.05


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the run is in the folder."""

    session_id: str
    generation: int = 1
    """Counts how often the export started over."""
    sent: Sent = Sent()
    folders: tuple[str, ...] = ()
    """Complete offline folders, in the order of upload."""
    unfinished: str = ""
    """The folder being written; removed at the next start if the replay is killed."""


class WandbSink:
    """An offline W&B run inside a folder."""

    takes_late_points = False

    def __init__(self, folder: str | Path, *, project: str = "crashproof", disk: Disk = REAL_DISK) -> None:
        """`folder`: where W&B creates its folder `wandb`."""
        self.names = TrackerNames(WANDB)
        self._wandb = _import_wandb()
        self._folder = Path(folder)
        self._project = project
        self._disk = disk
        self._facts: RunFacts | None = None
        self._note: _Note | None = None
        self._pending: Sent | None = None
        self._used: set[str] = set()
        """Names of offline folders that are taken, or were."""
        self._run: Any = None

    def open(self, run: RunFacts) -> Sent:
        """See `Exporter`."""
        self._disk.make_folders(self._folder)
        self._facts = run
        note = self._read_note() or _Note(session_id=run.session_id)
        if note.session_id != run.session_id:
            raise OtherRun(self._folder, found=note.session_id, wanted=run.session_id)
        self._note = note
        self._used = {*note.folders, note.unfinished}
        if note.unfinished:
            self._remove(note.unfinished)
            self._write_note(msgspec.structs.replace(note, unfinished=""))
        return note.sent

    def forget(self) -> None:
        """See `Exporter`."""
        note = self._note
        assert note is not None
        self._write_note(_Note(session_id=note.session_id, generation=note.generation + 1))
        for each in note.folders:
            self._remove(each)

    def add(self, points: Sequence[Point], sent: Sent) -> None:
        """See `Exporter`; what was added counts once the exporter is closed."""
        # If this fails half-way, the folder counts as unfinished.
        self._pending = None
        if self._run is None:
            self._run = self._start_run()
        for point in points:
            self._run.log({**point.values, **point.evaluation, "_timestamp": point.timestamp}, step=point.step)
        self._pending = sent

    def close(self) -> None:
        """See `Exporter`."""
        if self._run is None:
            return
        run, self._run = self._run, None
        run.finish()
        note = self._note
        assert note is not None
        if self._pending is not None:
            self._write_note(
                msgspec.structs.replace(
                    note, sent=self._pending, folders=(*note.folders, note.unfinished), unfinished=""
                )
            )
            self._pending = None

    def _start_run(self) -> Any:
        facts, note = self._facts, self._note
        assert facts is not None
        assert note is not None
        identity = f"{facts.session_id}-{note.generation}"
        # W&B names a folder by the second: two within one second would be one.
        while time.strftime(f"offline-run-%Y%m%d_%H%M%S-{identity}") in self._used:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        run = self._wandb.init(
            mode="offline",
            project=self._project,
            dir=str(self._folder),
            id=identity,
            name=facts.name,
            group=facts.session_id,
            config=facts.config,
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(
                console="off", silent=True, x_disable_stats=True, x_disable_meta=True, save_code=False
            ),
        )
        # The folder's name has a time in it, known only now; nothing of the run is in it yet.
        name = Path(run.dir).parent.name
        self._used.add(name)
        self._write_note(msgspec.structs.replace(note, unfinished=name))
        return run

    def _remove(self, name: str) -> None:
        path = self._folder / "wandb" / name
        if name and path.is_dir():
            self._disk.remove_tree(path)

    def _read_note(self) -> _Note | None:
        try:
            return msgspec.json.decode((self._folder / _NOTE).read_bytes(), type=_Note)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write_note(self, note: _Note) -> None:
        write_bytes_atomically(self._folder / _NOTE, msgspec.json.encode(note), disk=self._disk)
        self._note = note


def _import_wandb() -> Any:
    require_versions("wandb", {"wandb": "0.20"})
    try:
        import wandb
    except ImportError:
        raise missing_extra("wandb") from None
    return wandb
