"""A value that nobody prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Sealed"]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Sealed(Generic[_Value]):
    """Passes keys and passwords on: what is passed to a remote call may be shown by its representation."""

    value: _Value

    def __repr__(self) -> str:
        return "Sealed(…)"

    def open(self) -> _Value:
        """The value."""
        return self.value
