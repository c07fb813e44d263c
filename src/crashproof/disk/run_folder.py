"""The paths of a run."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["RunFolder", "is_remote"]


class RunFolder:
    """Every path of a run, derived from its progress folder."""

    def __init__(self, progress: Path) -> None:
        self.progress = Path(os.path.abspath(progress))
        self.root = self.progress.parent
        """The run's own folder, which holds the checkpoints."""
        self.metrics = self.progress / "metrics.jsonl"
        self.curves = self.progress / "curves.jsonl"
        """Decimated metrics for plots, derived from the metrics."""
        self.events = self.progress / "events.jsonl"
        self.answers = self.progress / "api_recovery.jsonl"
        self.requests = self.progress / "api_requests.jsonl"
        self.answer_index = self.progress / "api_recovery.index"
        self.reserved_space = self.progress / "api_recovery.ballast"
        self.session = self.progress / "session.json"
        self.summary = self.progress / "progress.json"
        self.manifest = self.progress / "checkpoints.json"
        self.archive = self.progress / "archive"
        self.quarantine = self.progress / "set_aside"
        """Damaged bytes and checkpoints that were moved out of the way."""
        self.previous = self.progress / "previous"
        """Bytes of recorded checkpoints whose files are overwritten by the next save."""
        self.lock = self.progress / "writer.lock"

    @classmethod
    def under(cls, output_dir: Path) -> RunFolder:
        """The run of a trainer with this output folder."""
        return cls(output_dir / "progress")

    @property
    def holds_a_run(self) -> bool:
        """Whether a session has begun here."""
        return self.events.exists() or self.metrics.exists()

    def recorded_path(self, path: Path) -> str:
        """A path as records keep it: relative to the run if it is inside, so that the run can be moved."""
        absolute = Path(os.path.abspath(path))
        if absolute.is_relative_to(self.root):
            return str(absolute.relative_to(self.root))
        resolved, root = absolute.resolve(), self.root.resolve()
        return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else str(absolute)

    def find(self, recorded_path: str) -> Path:
        """The absolute path of a recorded one, also after the run was moved or its folder renamed."""
        recorded = Path(recorded_path)
        candidates = [
            self.root / recorded,
            # Recorded inside the progress folder, which has another name now.
            self.progress.joinpath(*recorded.parts[1:]),
            # Archived with its session.
            self.progress / "checkpoints" / recorded,
        ]
        if recorded.is_absolute() or not recorded.name:
            return candidates[0]
        return next((path for path in candidates if path != self.progress and path.exists()), candidates[0])

    def archive_of(self, session_id: str) -> Path:
        """The folder of an archived session."""
        return self.archive / session_id

    def is_inside(self, path: Path) -> bool:
        """Whether a path is inside the run's folder, so that the run may move it."""
        return Path(os.path.abspath(path)).is_relative_to(self.root)

    @staticmethod
    def free_name(wanted: Path) -> Path:
        """`wanted`, or the first of `wanted.1`, `wanted.2`, … that does not exist."""
        name, number = wanted, 0
        while name.exists():
            number += 1
            name = wanted.with_name(f"{wanted.name}.{number}")
        return name


def is_remote(checkpoint_path: str) -> bool:
    """Whether a recorded checkpoint is a URL, not a path."""
    return "://" in checkpoint_path
