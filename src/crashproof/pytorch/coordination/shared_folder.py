"""Require one writable folder for all ranks.

Every rank writes a small file, syncs, renames and removes it, and reads what another has written. So a host that
cannot write the folder, or sees another one under its name, is found before anything is computed.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crashproof.checkpoints.partials import sweep_before_start
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.disk.trial_write import errors_of_folder, remove_trial, trial_path, try_to_write, write_trial
from crashproof.errors import FolderNotShared, StorageError
from crashproof.formatting import listing
from crashproof.pytorch.coordination.acting_together import act_together
from crashproof.pytorch.ranks import Ranks

__all__ = ["require_shared_folder"]

_LOOK_SECONDS = 10.0
"""A network file system may show a new file to other hosts a little later."""
_POLL_SECONDS = 0.1
_MOST_NAMED = 4
_SHARE_IT = "Let all hosts share the file system of --output-dir."
_MAKE_IT_WRITABLE = "Every rank writes its part of each checkpoint."


def require_shared_folder(
    folder: Path, ranks: Ranks, *, disk: Disk = REAL_DISK, look_seconds: float = _LOOK_SECONDS
) -> None:
    """Make a run's folder where it is missing, and require that every rank can write it; nothing else stays.

    All ranks call this, and all return or raise.

    Args:
        folder: As all ranks call it.
        ranks: The processes of the run.
        disk: Target of all writes.
        look_seconds: How long a rank looks for what another has written.

    Raises:
        DiskFull, StorageUnwritable: The main process cannot make or write it.
        FolderNotShared: Another rank cannot write it, or has another folder; names each.
        RunInUse: Another live process writes the run.
        RankLost: Another rank died, or did not take part within the limit.
    """
    nonce = ranks.broadcast(secrets.token_hex(6), "naming a trial file")
    act_together(ranks, "making the output folder", lambda: _make(folder, nonce, disk), only_main=True)
    if ranks.num_ranks == 1:
        return
    trial = _Trial(folder=folder, ranks=ranks, nonce=nonce, look_seconds=look_seconds, disk=disk)
    try:
        trial.share("writing a trial file", trial.write)
        trial.share("reading trial files", trial.read)
        # All have looked: now each may remove its own.
        trial.share("removing a trial file", trial.remove)
    except BaseException:
        with suppress(_Unusable):
            trial.remove()
        raise


def _make(folder: Path, nonce: str, disk: Disk) -> None:
    with errors_of_folder(folder):
        disk.make_folders(folder)
    # What cannot be removed shows when the folder is written.
    with suppress(StorageError, OSError):
        sweep_before_start(RunFolder.under(folder), disk=disk)
    try_to_write(folder, nonce, disk=disk)


class _Unusable(Exception):
    """A sentence on what keeps one rank from saving in the folder, and a hint."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """The part of one rank."""

    folder: Path
    ranks: Ranks
    nonce: str
    look_seconds: float
    disk: Disk

    def share(self, what: str, act: Callable[[], None]) -> None:
        """Act on each rank; if that shows that one cannot use the folder, all of them raise."""
        own: tuple[str, str] | None = None
        try:
            act()
        except _Unusable as problem:
            own = problem.sentence, problem.hint
        found = [each for each in self.ranks.all_gather(own, what) if each is not None]
        if found:
            more = len(found) - _MOST_NAMED
            sentences = [sentence for sentence, _ in found[:_MOST_NAMED]]
            sentences += [f"So it is with {more:,} more."] if more > 0 else []
            hints = list(dict.fromkeys(hint for _, hint in found))
            raise FolderNotShared(self.folder, problems=sentences, hints=hints)

    def write(self) -> None:
        """Write a file of this rank."""
        if not self._appears(self.folder.is_dir):
            raise _Unusable(f"{self._who} does not see the folder that rank 0 has made.", _SHARE_IT)
        try:
            write_trial(self.folder, self._name(self.ranks.rank), self.nonce, disk=self.disk)
        except StorageError as error:
            raise self._unwritable(error) from error

    def read(self) -> None:
        """Look for the main rank's file; the main rank looks for all."""
        wanted = range(1, self.ranks.num_ranks) if self.ranks.is_main else [0]
        unseen = list(self._unseen(wanted))
        if unseen:
            raise _Unusable(
                f"{self._who} does not see what rank {listing([str(each) for each in unseen])} has written there, so "
                "it has another folder of that name.",
                _SHARE_IT,
            )

    def remove(self) -> None:
        """Remove the file of this rank, if there is one."""
        try:
            remove_trial(self.folder, self._name(self.ranks.rank), disk=self.disk)
        except StorageError as error:
            raise self._unwritable(error) from error

    @property
    def _who(self) -> str:
        return f"Rank {self.ranks.rank} on {socket.gethostname()}"

    def _name(self, rank: int) -> str:
        return f"{self.nonce}-{rank}"

    def _unseen(self, ranks: Iterable[int]) -> Iterable[int]:
        ends_at = time.monotonic() + self.look_seconds
        for rank in ranks:
            if not self._appears(partial(self._is_there, rank), seconds=ends_at - time.monotonic()):
                yield rank

    def _is_there(self, rank: int) -> bool:
        try:
            return trial_path(self.folder, self._name(rank)).read_text() == self.nonce
        except OSError:
            return False

    def _appears(self, look: Callable[[], bool], *, seconds: float | None = None) -> bool:
        ends_at = time.monotonic() + (self.look_seconds if seconds is None else seconds)
        while not look():
            if time.monotonic() >= ends_at:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _unwritable(self, error: StorageError) -> _Unusable:
        return _Unusable(f"{self._who}: {error.message}", f"{_MAKE_IT_WRITABLE} {error.hint}")
