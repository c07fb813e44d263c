"""Records of checkpoints."""

from __future__ import annotations

from typing import Protocol, cast

from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import force_setattr

from crashproof.digests import SHA256, named
from crashproof.records.metrics import MetricsSnapshot

__all__ = [
    "CheckpointMetadata",
    "FileDigest",
    "FileStat",
    "RefusedCheckpoint",
    "RemovedCheckpoint",
    "SuspectCheckpoint",
    "take_in_sha256",
]


class _Digested(Protocol):
    @property
    def digest(self) -> str | None: ...

    @property
    def unnamed_sha256(self) -> str | UnsetType | None: ...


class FileDigest(Struct, frozen=True, kw_only=True):
    """One file of a checkpoint folder."""

    num_bytes: int
    digest: str = ""
    """Begins with the name of its algorithm."""
    unnamed_sha256: str | UnsetType | None = field(default=UNSET, name="sha256")
    """As in a record that was written before digests named their algorithm; never set once it is read."""

    def __post_init__(self) -> None:
        take_in_sha256(self)
        if not self.digest:
            raise ValueError("a file of a checkpoint has no digest")


class FileStat(Struct, frozen=True, array_like=True):
    """What the file system says of a file; another writer changes it."""

    num_bytes: int
    inode: int
    mtime_ns: int


class CheckpointMetadata(Struct, frozen=True, kw_only=True):
    """A checkpoint as the manifest knows it."""

    checkpoint_step: int
    checkpoint_path: str
    """Relative to the run folder if it lies inside, otherwise absolute; absolute too in what recovery returns."""
    created_at: float
    """Seconds since 1970."""
    metrics: MetricsSnapshot | None
    """The update of its step; where there was none, the newest one before it."""
    dataset_position: int
    """Samples of the training data consumed so far."""
    recovery_tags: list[str]
    """Why it is kept: `periodic`, `best_loss`, …"""
    attempt: int
    rewinds: int = 0
    """How often its attempt had gone back to an earlier step before; -1 before the attempt's first update."""
    is_before_update: bool = False
    """Whether it was recorded before the update of its own step, as loops that count from 0 do."""
    num_bytes: int | None = None
    """Size of the file, or of all files of the folder; None if there was no such path when it was recorded."""
    digest: str | None = None
    """Digest of the file, or of the folder's sorted listing of digests, with its algorithm; None until computed."""
    files: dict[str, FileDigest] | None = None
    """Each file of a folder by its relative name; None for a single file."""
    stats: dict[str, FileStat] | UnsetType = UNSET
    """Each file by its relative name (`.` for a single file), as it was when recorded; absent with a digest."""
    verified: dict[str, FileStat] | UnsetType = UNSET
    """The same of the files when their bytes were last found to be those of the digest; absent where not noted."""
    evaluation: dict[str, float] | None = None
    """Results on held-out data that its own attempt measured at its step; None if there are none."""
    nonfinite: dict[str, str] | UnsetType = UNSET
    """Non-finite values of `evaluation`, as in a line of metrics."""
    unnamed_sha256: str | UnsetType | None = field(default=UNSET, name="sha256")
    """As in a record that was written before digests named their algorithm; never set once it is read."""

    def __post_init__(self) -> None:
        take_in_sha256(self)

    @property
    def next_step(self) -> int:
        """The first step that is not in it: where training goes on that resumes from it."""
        return self.checkpoint_step + (0 if self.is_before_update else 1)

    @property
    def is_verifiable(self) -> bool:
        """Whether damage to it can be detected."""
        return self.digest is not None


class RefusedCheckpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint that cannot be used, and why."""

    checkpoint_step: int
    checkpoint_path: str
    reason: str


class SuspectCheckpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint from which resumes died without progress."""

    checkpoint_step: int
    checkpoint_path: str
    created_at: float
    """The moment of its record."""
    reason: str


class RemovedCheckpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint that the retention rule does not keep."""

    step: int
    checkpoint_path: str


def take_in_sha256(record: _Digested) -> None:
    """Give a record that was just read from an older file its digest with the name of the algorithm."""
    if record.unnamed_sha256 is UNSET:
        return
    struct = cast(Struct, record)
    if not record.digest and record.unnamed_sha256:
        force_setattr(struct, "digest", named(SHA256, record.unnamed_sha256))
    force_setattr(struct, "unnamed_sha256", UNSET)
