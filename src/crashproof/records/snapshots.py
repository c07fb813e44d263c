"""Contents of the snapshot files."""

from __future__ import annotations

from msgspec import Struct

from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import TrainingSession
from crashproof.records.version import FORMAT_VERSION, NAMED_DIGESTS

__all__ = [
    "EarlierManifest",
    "EarlierSessionFile",
    "JournalMark",
    "Manifest",
    "ProgressFile",
    "ProgressSnapshot",
    "SessionFile",
]


class JournalMark(Struct, frozen=True, kw_only=True):
    """The position in a journal up to which a snapshot includes it."""

    num_bytes: int = 0
    num_lines: int = 0
    last_line_crc: str = ""
    """Checksum of the line that ends there; it shows whether the journal is still the same file."""


class SessionFile(TrainingSession, kw_only=True, tag_field="v", tag=NAMED_DIGESTS):
    """`session.json`: the session, and the position in each journal up to which it includes them."""

    saved_at: float
    journals: dict[str, JournalMark]


class EarlierSessionFile(SessionFile, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """The same, written before digests named their algorithm."""


class Manifest(Struct, frozen=True, kw_only=True, tag_field="v", tag=NAMED_DIGESTS):
    """`checkpoints.json`."""

    session_id: str
    checkpoints: dict[int, CheckpointMetadata]
    """The newest record of each step."""
    checkpoints_beside: list[CheckpointMetadata] = []
    """All others."""
    last_checkpoint_step: int | None
    saved_at: float


class EarlierManifest(Manifest, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """The same, written before digests named their algorithm."""


class ProgressFile(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """The fields of `progress.json` besides those of the summary."""

    saved_at: float
    last_seen: float | None = None
    """When the newest record was written; None where an earlier version wrote the file."""
    journals: dict[str, int] | None = None
    """By name, how many bytes of each journal it includes; None where some of what it includes is in no journal."""


class ProgressSnapshot(ProgressSummary, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`progress.json`, all of it."""

    saved_at: float
    last_seen: float | None = None
    journals: dict[str, int] | None = None
