"""Show notifications on a desktop."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from crashproof.alerts.channels.base import AlertChannel, ChannelUnavailable
from crashproof.alerts.channels.program import as_argument, run_program
from crashproof.alerts.content import AlertContent

__all__ = ["Desktop"]

# The texts are arguments of their own, so that no message can be read as a script.
_MACOS_SCRIPT = (
    "on run words",
    "display notification (item 2 of words) with title (item 1 of words)",
    "end run",
)


@dataclass(frozen=True, kw_only=True)
class Desktop(AlertChannel):
    """Shows each alert through `notify-send` or, on macOS, `osascript`."""

    name: ClassVar[str] = "desktop"

    limit_seconds: float = 10.0

    @classmethod
    def from_setting(cls, setting: object) -> Self | None:
        """On or off."""
        return cls() if setting else None

    @property
    def setting(self) -> Literal[True]:
        """On."""
        return True

    def send(self, content: AlertContent) -> None:
        """Show a notification."""
        texts = (as_argument(f"crashproof: {content.kind}"), as_argument(content.as_line()))
        run_program([*_notifier(), *texts], limit_seconds=self.limit_seconds)


def _notifier() -> list[str]:
    if program := shutil.which("notify-send"):
        return [program, "--"]
    if sys.platform == "darwin" and (program := shutil.which("osascript")):
        return [program, *(part for line in _MACOS_SCRIPT for part in ("-e", line))]
    raise ChannelUnavailable("neither notify-send nor osascript was found")
