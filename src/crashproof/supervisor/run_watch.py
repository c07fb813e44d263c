"""What a supervisor sees of its child's run."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from crashproof.disk.run_folder import RunFolder
from crashproof.disk.supervision.phase_board import read_board
from crashproof.disk.supervision.private_folder import read_if_there
from crashproof.errors import CrashproofError
from crashproof.reading.run_reader import RunReader
from crashproof.reading.session_follower import SessionFollower
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import CheckpointRecorded, ResumeChosen
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.supervision import OpenedRun, Phase
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.tracking.supervised.link import BOARD_FILE, PHASES, RUN_FILE

__all__ = ["Look", "RunWatch"]

_NEWEST_SAVES = 5
_LEVELS = 3
_MOST_FILES = 2000
_LOGS = (".log", ".out", ".err", ".txt", ".wandb")
_LOG_FOLDERS = frozenset({"logs", "mlruns", "runs", "tensorboard", "wandb"})
"""What trackers and logs write grows while nothing moves, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is seen at one moment."""

    progress: Hashable
    """Differs from the last one if the run has made progress."""
    phase: Phase | None
    """None if hangs cannot be told, as nothing shows progress."""


class RunWatch:
    """Follows the run that the child opens, and files that were named."""

    def __init__(self, private: Path, *, run: RunFolder | None, files: Sequence[Path]) -> None:
        """`run` is known beforehand where a user names it, or an earlier life opened it."""
        self.folder = run
        """The run's; None until the child has opened one."""
        self.opened: OpenedRun | None = None
        """By this life; None until it has."""
        self._private = private
        self._files = files
        self._follower = None if run is None else SessionFollower(run)

    def look(self) -> Look:
        """See how far the run is."""
        self._find_opened()
        files = tuple(_size_of(each) for each in self._files)
        if self.opened is None:
            # What shows no progress is not timed: the command may never open a run.
            phase = Phase.TRAINING if self._files else None if self.folder is None else Phase.STARTING
            return Look(progress=files, phase=phase)
        session = self.session()
        attempt = None if session is None else self.attempt_in(session)
        if session is None or attempt is None:
            return Look(progress=files, phase=Phase.STARTING)
        progress = (
            files,
            attempt.last_seen,
            attempt.last_step,
            attempt.rewinds,
            session.steps_computed,
            session.api_responses_saved,
            session.api_requests_in_doubt,
            len(session.api_requests_open),
        )
        return Look(progress=progress, phase=self._phase(session, attempt))

    def session(self) -> TrainingSession | None:
        """The session as of now; None if there is none that can be read."""
        if self._follower is None:
            return None
        try:
            return self._follower.session()
        except (CrashproofError, OSError):
            # At the next look it may be readable again; without progress, that is a hang like any other.
            return None

    def attempt_in(self, session: TrainingSession) -> AttemptRecord | None:
        """The attempt of this life."""
        if self.opened is None:
            return None
        number = self.opened.attempt
        return next((each for each in reversed(session.attempts) if each.attempt == number), None)

    def verified(self) -> int | None:
        """Progress that no end can undo: the newest checkpoint's step, or answers of a job; None without a run."""
        session = self.session()
        if session is None:
            return None
        if session.is_job:
            return session.steps_completed + session.api_responses_saved
        newest = CheckpointCatalog(session).newest()
        return 0 if newest is None else newest.checkpoint_step

    def resumed_from(self, session: TrainingSession) -> CheckpointMetadata | None:
        """The checkpoint that this life resumed from: the one it chose, or else the first that a restart tries."""
        catalog, chosen = CheckpointCatalog(session), None
        if self.opened is not None and self.folder is not None:
            chosen = next(
                (
                    each.checkpoint_path
                    for each in RunReader(self.folder).events()
                    if isinstance(each, ResumeChosen) and each.attempt == self.opened.attempt
                ),
                None,
            )
        return catalog.newest() if chosen is None else catalog.at_path(chosen)

    def save_seconds(self) -> list[float]:
        """How long each of the newest saves has taken, as the run has recorded it."""
        if self.folder is None:
            return []
        recorded = [each for each in RunReader(self.folder).events() if isinstance(each, CheckpointRecorded)]
        return [
            max(each.seconds, each.save_seconds if isinstance(each.save_seconds, float) else 0.0)
            for each in recorded[-_NEWEST_SAVES:]
        ]

    def newest_checkpoint_in_words(self) -> str:
        """What a restart would resume from."""
        session = self.session()
        newest = None if session is None else CheckpointCatalog(session).newest()
        return "step 0" if newest is None else f"{newest.checkpoint_path} (step {newest.checkpoint_step:,})"

    def files(self) -> Hashable:
        """Sizes and times of what lies in the run's folder: it changes while a checkpoint is written."""
        return None if self.folder is None else tuple(_files_below(self.folder.root, self.folder.progress))

    def _find_opened(self) -> None:
        content = read_if_there(self._private / RUN_FILE)
        if content is None:
            return
        try:
            opened = msgspec.json.decode(content, type=OpenedRun)
        except msgspec.DecodeError:
            return
        if opened != self.opened:
            self.opened = opened
            self.folder = RunFolder(Path(opened.progress))
            self._follower = SessionFollower(self.folder)

    def _phase(self, session: TrainingSession, attempt: AttemptRecord) -> Phase:
        number = read_board(self._private / BOARD_FILE)
        shown: Phase | None = PHASES[number] if number < len(PHASES) else None
        if shown is not None:
            return shown
        if any(each.attempt == attempt.attempt for each in session.api_requests_open.values()):
            return Phase.WAITING
        return Phase.STARTING if attempt.first_step is None and not session.is_job else Phase.TRAINING


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _files_below(root: Path, without: Path) -> Iterator[tuple[str, int, int]]:
    waiting, num_seen = [(root, 0)], 0
    while waiting:
        folder, level = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for each in entries:
            num_seen += 1
            if (
                num_seen > _MOST_FILES
                or Path(each.path) == without
                or each.name.endswith(_LOGS)
                or "tfevents" in each.name
            ):
                continue
            try:
                if each.is_dir(follow_symlinks=False):
                    if level < _LEVELS and each.name not in _LOG_FOLDERS:
                        waiting.append((Path(each.path), level + 1))
                    continue
                status = each.stat(follow_symlinks=False)
            except OSError:
                continue
            yield each.path, status.st_size, status.st_mtime_ns
