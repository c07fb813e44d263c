"""The snapshots that other programs read."""

from __future__ import annotations

from msgspec import Struct

from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.session import TrainingSession
from crashproof.records.version import FORMAT_VERSION

__all__ = [
    "JournalMark",
    "Manifest",
    "ProgressFile",
    "SessionFile",
]


class JournalMark(Struct, frozen=True, kw_only=True):
    """How much of a journal a snapshot has taken in."""

    num_bytes: int = 0
    num_lines: int = 0
    last_line_crc: str = ""
    """Of the line that ends there; tells whether the journal is still the same file."""


class SessionFile(TrainingSession, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`session.json`: the session and how much of the journals it has taken in."""

    saved_at: float
    journals: dict[str, JournalMark]


class Manifest(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`checkpoints.json`."""

    session_id: str
    checkpoints: dict[int, CheckpointMetadata]
    last_checkpoint_step: int | None
    saved_at: float


class ProgressFile(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`progress.json` is this beside the fields of the summary."""

    saved_at: float
