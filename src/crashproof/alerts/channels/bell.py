"""Ring the terminal's bell."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from crashproof.alerts.channels.base import AlertChannel
from crashproof.alerts.content import AlertContent

__all__ = ["Bell"]


@dataclass(frozen=True, kw_only=True)
class Bell(AlertChannel):
    """Rings the terminal that the training writes its errors to; elsewhere it is silent."""

    name: ClassVar[str] = "bell"
    # It is the training that knows its `sys.stderr`, and one byte is not worth a process.
    runs_in_training: ClassVar[bool] = True
    # Nobody has to accept anything.
    limit_seconds: ClassVar[float] = 0.0

    @classmethod
    def from_setting(cls, setting: object) -> Self | None:
        """On or off."""
        return cls() if setting else None

    @property
    def setting(self) -> Literal[True]:
        """On."""
        return True

    def send(self, content: AlertContent) -> None:
        """Ring once."""
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write("\a")
            sys.stderr.flush()
