"""Run the user's own command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from crashproof.alerts.channels.ascii_json import as_json
from crashproof.alerts.channels.base import AlertChannel
from crashproof.alerts.channels.program import as_argument, run_program
from crashproof.alerts.content import AlertContent
from crashproof.errors import ConfigError

__all__ = ["Command"]


@dataclass(frozen=True, kw_only=True)
class Command(AlertChannel):
    """Runs a program, or a line for the shell, with the alert as JSON on its standard input."""

    name: ClassVar[str] = "command"
    is_secret: ClassVar[bool] = True

    command: tuple[str, ...] | str = field(repr=False)
    limit_seconds: float = 60.0

    @classmethod
    def from_setting(cls, setting: object) -> Self | None:
        """A list of words, or a line for the shell."""
        if setting is None:
            return None
        if isinstance(setting, str) and setting.strip():
            return cls(command=setting)
        if not isinstance(setting, str) and isinstance(setting, Sequence) and setting:
            # A copy: whoever gave the list may change it.
            words = tuple(setting)
            if all(isinstance(word, str) and "\0" not in word for word in words):
                return cls(command=words)
        raise ConfigError(
            "command is not a program to start.",
            hint='Write a list such as ["notify", "--now"], or a line for the shell.',
        )

    @property
    def setting(self) -> tuple[str, ...] | str:
        """The command."""
        return self.command

    def send(self, content: AlertContent) -> None:
        """Run the command; kill it, and all that it started, after its limit."""
        environment = os.environ | {
            "CRASHPROOF_ALERT_KIND": as_argument(content.kind),
            "CRASHPROOF_ALERT_MESSAGE": as_argument(content.message),
            "CRASHPROOF_ALERT_RUN": as_argument(content.run),
        }
        run_program(self.command, stdin=as_json(content), environment=environment, limit_seconds=self.limit_seconds)
