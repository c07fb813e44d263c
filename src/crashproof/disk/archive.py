"""Archive a whole session.

Its files are moved into `archive/.incoming-<session_id>/` one by one, the events last, and the folder gets its
final name when all are in it. As long as an incoming folder exists, whatever lies beside it still belongs to the
old session, so the next start completes an interrupted move.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from crashproof.disk.files import Disk, storage_errors
from crashproof.disk.run_folder import RunFolder, is_folder_name

__all__ = ["archive_session", "interrupted_archiving"]

log = logging.getLogger("crashproof")

_INCOMING = ".incoming-"


def archive_session(folder: RunFolder, session_id: str, checkpoints: Iterable[Path], *, disk: Disk) -> Path:
    """Move a session's journals, snapshots and checkpoints inside the run; return where they are now.

    Paid answers stay: the next session uses them too. What is recorded as a checkpoint and lies elsewhere, on another
    file system (a mount inside the run), or is a file of the run itself, stays too.

    Raises:
        StorageUnwritable: the archive is a link; nothing was moved.
    """
    final = folder.archive_of(session_id)
    incoming = folder.archive / f"{_INCOMING}{final.name}"
    folder.require_no_link(incoming)
    if final.name != session_id:
        log.warning(
            "The session calls itself %r, which is no name of a folder; it is archived as %s.", session_id, final
        )
    own = [path for path in checkpoints if folder.may_move(path)]
    with storage_errors(incoming):
        disk.make_folders(incoming)
        for path in own:
            inside = Path(os.path.abspath(path)).relative_to(folder.root)
            try:
                _move([path], (incoming / "checkpoints" / inside).parent, disk)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                log.warning(
                    "%s is on another file system than %s: it is not moved with its session, and stays.",
                    path,
                    folder.archive,
                )
        snapshots = [folder.summary, folder.manifest, folder.session]
        _move([*snapshots, folder.coarse_curves, folder.curves, folder.metrics, folder.events], incoming, disk)
        final = folder.free_name(final)
        disk.replace(incoming, final)
        disk.sync_folder(folder.archive)
    return final


def interrupted_archiving(folder: RunFolder) -> str | None:
    """The session whose archiving was interrupted by a crash, or None."""
    for incoming in sorted(folder.archive.glob(f"{_INCOMING}*")):
        name = incoming.name.removeprefix(_INCOMING)
        if is_folder_name(name):
            return name
    return None


def _move(paths: Iterable[Path], target: Path, disk: Disk) -> None:
    for path in paths:
        if not path.exists():
            continue
        disk.make_folders(target)
        disk.replace(path, RunFolder.free_name(target / path.name))
        # One after the other, durably: the events must not arrive before what they describe.
        disk.sync_folder(target)
        disk.sync_folder(path.parent)
