"""What a supervisor is told to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from crashproof.alerts.settings import AlertSettings
from crashproof.rules.supervision.backoff import Backoff
from crashproof.rules.supervision.progress_limits import ProgressLimits
from crashproof.rules.supervision.restarts import RestartRules

__all__ = ["SupervisorSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSettings:
    """The command, and the limits of its lives."""

    command: tuple[str, ...]
    run: Path | None = None
    """The output folder of its run; None if the tracker is to tell it."""
    watch_files: tuple[Path, ...] = ()
    """Files whose growth is progress."""
    progress_limits: ProgressLimits = field(default_factory=ProgressLimits)
    grace_seconds: float = 30.0
    """Between a request to stop and SIGKILL."""
    rules: RestartRules = field(default_factory=RestartRules)
    backoff: Backoff = field(default_factory=Backoff)
    alerts: AlertSettings = field(default_factory=AlertSettings)
