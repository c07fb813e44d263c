"""What the job and its driver tell each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob

__all__ = ["ClusterTask", "Failed", "Finished", "Order", "Progress", "Said"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTask:
    """To the driver, first: what to do."""

    job: GenerationJob
    settings: TeacherSettings
    store_url: str = field(repr=False)
    account: str


class Order(StrEnum):
    """To the driver, later; that the job is gone means `STOP`."""

    STOP = "stop"
    """Send no further requests, and wait for those in flight."""
    GIVE_UP = "give_up"
    """Give up the requests in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """To the job: what has happened since the last one."""

    num_finished: int
    failures: list[tuple[int, str]]
    """Failed attempts: 1 if it will be tried again or else 0, and the reason."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why there is no usable answer, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """To the job: a line of the driver's log."""

    level: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """To the job, last: all that could be asked was asked."""

    asked: EngineResult
    """Without the reasons, which were told before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """To the job, last: why the driver could not go on."""

    error: Exception
