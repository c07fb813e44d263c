"""The rows of the table of keys."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

__all__ = ["KeyRow", "Reason", "SectionRow"]


class Reason(StrEnum):
    """Why a change does not count."""

    LENGTH = "how long to train"
    NAME = "what the run is called"
    PLACE = "where to write"
    LOGGING = "what is logged and reported"
    SAVING = "when to save"
    EVALUATION = "when and how to evaluate"
    RESUME = "how to resume"
    PROCESSES = "which processes and devices train"
    EXECUTION = "how the same numbers are computed"
    ORIGIN = "which version, machine or moment wrote it"
    BATCH = "how the same global batch is divided"
    DEFAULT = "a default that was left out"
    SAME_NAME = "the same name in another place or at another time"
    REQUESTED = "as requested by ignore_config_keys"


class KeyRow(Struct, frozen=True, kw_only=True):
    """Keys that do not count, by their last part."""

    reason: Reason
    keys: str
    """Patterns, separated by blanks."""
    is_usual: bool = False
    """Only at the top, or in sections that are usual for a training: `rank` of a process, not of a LoRA."""
    under: str = ""
    """Only directly in a section of one of these patterns."""
    not_under: str = ""
    """In no section of one of these patterns."""
    beside: str = ""
    """Only in a config that also has a key of one of these patterns."""
    not_beside: str = ""
    """In no config that has a key of one of these patterns."""
    but: str = ""
    """Patterns of keys that are left out."""
    values: str = ""
    """Only where one of the two values is of one of these patterns."""


class SectionRow(Struct, frozen=True, kw_only=True):
    """Sections of which no key counts."""

    reason: Reason
    sections: str
    """Patterns, separated by blanks."""
    is_usual: bool = False
    """Only at the top, or in sections that are usual for a training."""
    is_top: bool = False
    """Only at the top; the key may also have a value instead of keys."""
