"""Settings of a tracker."""

from __future__ import annotations

from dataclasses import dataclass, field

from crashproof.alerts.settings import AlertSettings
from crashproof.rules.retention import RetentionRule

__all__ = ["TrackerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerSettings:
    """Intervals, limits, retention and alerts of a tracker."""

    sync_interval_seconds: float = 1.0
    """Metrics older than this survive a power loss."""
    summary_interval_seconds: float = 1.0
    """The greatest age of `progress.json`."""
    session_interval_seconds: float = 15.0
    """The greatest age of `session.json`: newer records are read from the journals at the next start."""
    session_interval_lines: int = 4096
    """The same, in lines of metrics."""
    large_checkpoint_bytes: int = 64 << 20
    """A file of at least this size that other code wrote is digested in the background."""
    throughput_window_seconds: float = 60.0
    keep: RetentionRule | None = None
    """Which checkpoints to keep once a newer one was read back intact; None keeps all."""
    max_failed_saves: int | None = None
    """How many saves in a row may fail before `SavesFailed` ends the training; None: however many."""
    alerts: AlertSettings = field(default_factory=AlertSettings)
    has_heartbeat: bool = True
    """Without it, nothing happens between calls: `save` syncs and writes the snapshots."""

    @property
    def heartbeat_seconds(self) -> float:
        """How often the work between calls is done."""
        return min(self.sync_interval_seconds, self.summary_interval_seconds)
