"""The paths of a run."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from crashproof.errors import StorageUnwritable
from crashproof.patterns import LazyPattern

__all__ = ["RunFolder", "is_folder_name", "is_remote"]

_NOT_IN_A_NAME = LazyPattern("[/\0\ud800-\udfff]")
_OWN_CHECKPOINT = LazyPattern(r"checkpoint_0*[1-9][0-9]{0,17}(?:\.[A-Za-z0-9.]{1,20})?")
_MAX_NAME_BYTES = 200
"""Of the 255 that a file system allows, some are for what is put before and behind it."""
_OWN_NAMES = frozenset(
    {
        *("metrics.jsonl", "curves.jsonl", "events.jsonl", "api_recovery.jsonl", "api_requests.jsonl"),
        *("api_recovery.index", "api_recovery.ballast", "account.json", "session.json", "progress.json"),
        *("checkpoints.json", "curves_coarse.jsonl", "archive", "set_aside", "stacks", "writer.lock"),
    }
)


class _Below:
    """A path in the progress folder, made when it is first asked for: a list of runs needs few of each."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __set_name__(self, owner: type, attribute: str) -> None:
        self._attribute = attribute

    def __get__(self, folder: RunFolder, owner: type) -> Path:
        path: Path = folder.progress / self._name
        # From now on the attribute itself is found first.
        folder.__dict__[self._attribute] = path
        return path


class RunFolder:
    """Every path of a run, derived from its progress folder."""

    metrics = _Below("metrics.jsonl")
    curves = _Below("curves.jsonl")
    """Decimated metrics for plots, derived from the metrics."""
    coarse_curves = _Below("curves_coarse.jsonl")
    """The same in fewer numbers."""
    events = _Below("events.jsonl")
    answers = _Below("api_recovery.jsonl")
    requests = _Below("api_requests.jsonl")
    answer_index = _Below("api_recovery.index")
    reserved_space = _Below("api_recovery.ballast")
    session = _Below("session.json")
    summary = _Below("progress.json")
    manifest = _Below("checkpoints.json")
    archive = _Below("archive")
    quarantine = _Below("set_aside")
    """Damaged bytes and checkpoints that were moved out of the way."""
    previous = _Below("previous")
    """Bytes of recorded checkpoints whose files are overwritten by the next save."""
    stacks = _Below("stacks")
    """Stacks of processes that hung, one file for each."""
    lock = _Below("writer.lock")

    def __init__(self, progress: Path) -> None:
        self.progress = Path(os.path.abspath(progress))
        self.root = self.progress.parent
        """The run's own folder, which holds the checkpoints."""

    @classmethod
    def under(cls, output_dir: Path) -> RunFolder:
        """The run of a trainer with this output folder."""
        return cls(output_dir / "progress")

    @property
    def holds_a_run(self) -> bool:
        """Whether a session has begun here; some of its files may be lost."""
        return any(each.exists() for each in (self.events, self.metrics, self.session, self.manifest))

    def own_checkpoints(self) -> list[Path]:
        """What lies beside the progress folder under the name that a run gives its checkpoints, recorded or not.

        Not those of step 0: a loop may save one before it has anything to record.
        """
        try:
            names = [each for each in os.listdir(self.root) if _OWN_CHECKPOINT.fullmatch(each)]
        except FileNotFoundError:
            return []
        by_step = sorted(names, key=lambda each: (int(re.findall(r"[0-9]+", each)[0]), each))
        return [self.root / each for each in by_step]

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
        """The folder of an archived session, inside the archive whatever the session calls itself."""
        if is_folder_name(session_id):
            return self.archive / session_id
        digest = hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return self.archive / f"session_{digest}"

    def is_inside(self, path: Path) -> bool:
        """Whether a path is inside the run's folder."""
        return Path(os.path.abspath(path)).is_relative_to(self.root)

    def may_move(self, path: Path) -> bool:
        """Whether the run may move or delete what a record calls a checkpoint.

        Records come from files, which somebody else may have written. So it must be inside the run's folder, also
        when the links above it are followed, and neither be, hold nor lie in anything that the run itself needs.
        """
        absolute = Path(os.path.abspath(path))
        if not absolute.is_relative_to(self.root) or absolute == self.root:
            return False
        resolved = absolute.parent.resolve() / absolute.name
        if not resolved.is_relative_to(self.root.resolve()):
            return False
        progress = self.progress.resolve()
        if progress.is_relative_to(resolved):
            return False
        return not resolved.is_relative_to(progress) or resolved.relative_to(progress).parts[0] not in _OWN_NAMES

    def is_behind_link(self, path: Path) -> bool:
        """Whether a path inside the run's folder is a link, or leads through one."""
        return path.resolve() != self.root.resolve() / path.relative_to(self.root)

    def require_no_link(self, path: Path) -> None:
        """Refuse to write below a folder of the run which is a link, and may lead out of it.

        Raises:
            StorageUnwritable: names it.
        """
        for folder in (path, *path.parents):
            if folder == self.progress:
                return
            if folder.is_symlink():
                raise StorageUnwritable(folder, reason="it is a link, and what the run moves stays in the run")

    @staticmethod
    def free_name(wanted: Path) -> Path:
        """`wanted`, or the first of `wanted.1`, `wanted.2`, … that does not exist."""
        name, number = wanted, 0
        while name.exists():
            number += 1
            name = wanted.with_name(f"{wanted.name}.{number}")
        return name


def is_folder_name(name: str) -> bool:
    """Whether a name is that of one folder, and of no other place."""
    is_hidden_or_blank = not name.strip() or name.startswith(".")
    return not is_hidden_or_blank and not _NOT_IN_A_NAME.search(name) and len(os.fsencode(name)) <= _MAX_NAME_BYTES


def is_remote(checkpoint_path: str) -> bool:
    """Whether a recorded checkpoint is a URL, not a path."""
    return "://" in checkpoint_path
