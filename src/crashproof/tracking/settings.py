"""How often a run is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from crashproof.alerts.settings import AlertSettings
from crashproof.rules.retention import RetentionRule

__all__ = [
    "TrackerSettings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerSettings:
    """How often, and from which size on."""

    sync_interval_seconds: float = 1.0
    """Metrics older than this survive a power loss."""
    summary_interval_seconds: float = 1.0
    """How old `progress.json` may get."""
    session_interval_seconds: float = 15.0
    """How old `session.json` may get: what came after it is read from the journals at the next start."""
    session_interval_lines: int = 4096
    """The same, in lines of metrics."""
    large_checkpoint_bytes: int = 64 << 20
    """From this size on, a file that somebody else wrote is digested behind the training."""
    throughput_window_seconds: float = 60.0
    keep: RetentionRule | None = None
    """Which checkpoints stay once a newer one has been read back whole; None keeps all."""
    alerts: AlertSettings = field(default_factory=AlertSettings)
    """Whom to alert, and of what."""
    has_heartbeat: bool = True
    """Without it nothing happens between calls: `save` syncs and writes the snapshots."""
