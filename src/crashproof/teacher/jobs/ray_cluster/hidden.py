"""A value that nobody prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Hidden"]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Hidden(Generic[_Value]):
    """Passes keys and passwords on: what is passed to a remote call may be shown by its representation."""

    value: _Value

    def __repr__(self) -> str:
        return "Hidden(…)"

    def open(self) -> _Value:
        """The value."""
        return self.value
