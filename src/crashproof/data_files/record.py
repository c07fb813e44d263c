"""One record and its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashproof.errors import DataError

__all__ = ["Place", "Record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record stands, as errors name it."""

    path: Path
    number: int
    """From 1."""
    unit: str = "line"
    """What is counted: `line`, `row` or `record`."""

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"

    def error(self, reason: str, *, hint: str = "") -> DataError:
        """The error that names this place."""
        return DataError(self.path, reason, line=self.number, unit=self.unit, hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One object of a file."""

    place: Place
    content: dict[str, Any]
