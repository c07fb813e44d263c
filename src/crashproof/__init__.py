"""Keeps a training run's progress through crashes: metrics, checkpoints and paid-for teacher answers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from crashproof.alerts.settings import AlertSettings
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.disk.atomic import WholeFile, write_atomically, write_folder_atomically
from crashproof.errors import CrashproofError
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.rules.retention import KeepBest, KeepEvery, KeepLatest, KeepMilestones
from crashproof.tracking.settings import TrackerSettings

if TYPE_CHECKING:
    from crashproof.reading.run_reader import RunReader
    from crashproof.tracking.context import (
        TrainingProgressContext,
        calculate_metrics_from_step,
        get_recovery_checkpoint,
        setup_progress_tracking,
        training_progress_context,
    )
    from crashproof.tracking.tracker import ProgressTracker
    from crashproof.views.dataframes import load
    from crashproof.views.notebook import show

__all__ = [
    "SYSTEM_CLOCK",
    "AlertSettings",
    "CheckpointMetadata",
    "Clock",
    "CrashproofError",
    "KeepBest",
    "KeepEvery",
    "KeepLatest",
    "KeepMilestones",
    "MetricsSnapshot",
    "ProgressTracker",
    "RunReader",
    "TrackerSettings",
    "TrainingProgressContext",
    "TrainingSession",
    "WholeFile",
    "calculate_metrics_from_step",
    "get_recovery_checkpoint",
    "load",
    "setup_progress_tracking",
    "show",
    "training_progress_context",
    "write_atomically",
    "write_folder_atomically",
]

_IMPORTED_AT_FIRST_USE = {
    "ProgressTracker": "crashproof.tracking.tracker",
    "TrainingProgressContext": "crashproof.tracking.context",
    "calculate_metrics_from_step": "crashproof.tracking.context",
    "get_recovery_checkpoint": "crashproof.tracking.context",
    "setup_progress_tracking": "crashproof.tracking.context",
    "training_progress_context": "crashproof.tracking.context",
    "RunReader": "crashproof.reading.run_reader",
    "load": "crashproof.views.dataframes",
    "show": "crashproof.views.notebook",
}
"""What writes runs, and what reads them: hardly a process does both, and each would wait for the other's imports."""


def __getattr__(name: str) -> object:
    if name not in _IMPORTED_AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_IMPORTED_AT_FIRST_USE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
