"""The JSON that the page reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from crashproof.reading.curves import Recomputed
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.curves import CurvePoint
from crashproof.records.events import Event
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import AttemptRecord, Evaluation, TrainingSession
from crashproof.records.states import HealthState, LossVerdict, RunStatus
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.identity import config_leaves

__all__ = [
    "CheckpointRow",
    "CheckpointState",
    "Columns",
    "Curve",
    "CurveTail",
    "RunDetail",
    "RunList",
    "RunNow",
    "RunRow",
    "Series",
    "Skipped",
    "StaleTail",
    "UnreadableRun",
    "as_json",
    "checkpoint_rows",
    "columns_of",
    "config_texts",
    "event_fields",
    "shown_text",
]

_MOST_CHECKPOINTS = 500
_MOST_CONFIG_CHARACTERS = 200_000
_MISTAKEN_FOR_A_BYTE = re.compile("%(?=25|[89A-F][0-9A-F])")
_BYTE_OF_NO_TEXT = re.compile("[\ud800-\udfff]")
_SHOWN_ELSEWHERE = frozenset({"config", "config_hash", "files", "v"})


class RunRow(Struct, frozen=True, kw_only=True):
    """A run in the list of all runs."""

    name: str
    session_id: str
    status: RunStatus
    health: HealthState
    health_reason: str
    progress_pct: float
    steps_completed: int
    total_steps_target: int
    estimated_remaining_hours: float | None
    elapsed_wall_clock_hours: float
    last_update_time: float | None
    api_cost: float
    attempt: int
    alerts_active: list[str]
    loss: float | None
    verdict: LossVerdict

    @classmethod
    def of(cls, name: str, summary: ProgressSummary) -> RunRow:
        """The row of the run called `name`."""
        shared = {field: getattr(summary, field) for field in cls.__struct_fields__ if hasattr(summary, field)}
        trend = summary.loss_trend
        return cls(name=name, loss=trend.current_loss, verdict=trend.verdict, **shared)


class UnreadableRun(Struct, frozen=True, kw_only=True):
    """A run in the list whose files cannot be read."""

    name: str
    health: HealthState = HealthState.UNREADABLE
    health_reason: str


class Skipped(Struct, frozen=True, kw_only=True):
    """A folder that was not searched for runs."""

    name: str
    reason: str


class RunList(Struct, frozen=True, kw_only=True):
    """All runs."""

    root: str
    now: float
    """Seconds since 1970."""
    runs: list[msgspec.Raw]
    num_skipped: int
    """Folders that were not searched."""
    skipped: list[Skipped]
    """The first of them."""


class RunNow(Struct, frozen=True, kw_only=True):
    """The state of a run at one moment."""

    now: float
    """Seconds since 1970."""
    summary: ProgressSummary


class RunDetail(RunNow, frozen=True, kw_only=True):
    """Everything about a run except its curves."""

    name: str
    folder: str
    attempts: list[AttemptRecord]
    checkpoints: list[CheckpointRow]
    evaluations: list[Evaluation]
    config: dict[str, str]
    config_hash: str
    events: list[dict[str, object]]


class CheckpointState(StrEnum):
    """What the records say of a checkpoint."""

    RECORDED = "recorded"
    """Its checksum is recorded."""
    UNVERIFIED = "unverified"
    SUPERSEDED = "superseded"
    QUARANTINED = "quarantined"


class CheckpointRow(Struct, frozen=True, kw_only=True):
    """A recorded checkpoint; of a quarantined one only where it was and why."""

    step: int
    path: str
    state: CheckpointState
    reason: str = ""
    created_at: float | UnsetType = UNSET
    num_bytes: int | UnsetType | None = UNSET
    loss: float | UnsetType | None = UNSET
    tags: list[str] | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    evaluation: dict[str, float] | UnsetType = UNSET


class Series(Struct, frozen=True, kw_only=True):
    """One series: a value per point, with the range where points stand for several updates."""

    last: list[float | None]
    non_finite: list[tuple[int, int]]
    """Indices of points with non-finite values, and how many each has."""
    low: list[float | None] | UnsetType = UNSET
    high: list[float | None] | UnsetType = UNSET
    mean: list[float | None] | UnsetType = UNSET


class Columns(Struct, frozen=True, kw_only=True):
    """Points by column, as the charts take them."""

    first_step: list[int]
    step: list[int]
    time: list[float]
    hours: list[float]
    attempt: list[int]
    series: dict[str, Series]


class Curve(Columns, frozen=True, kw_only=True):
    """The history of a range of steps."""

    num_updates: int
    is_decimated: bool
    end: int
    """Bytes of the journal that have been read."""
    num_bytes: int
    is_complete: bool
    recomputed: list[Recomputed]


class CurveTail(Columns, frozen=True, kw_only=True):
    """The updates after an offset of the journal."""

    is_stale: bool = False
    end: int
    num_updates: int


class StaleTail(Struct, frozen=True, kw_only=True):
    """Sent where new updates cannot be appended: the page must load its curve again."""

    is_stale: bool = True
    end: int = 0


def as_json(answer: object) -> bytes:
    """Encode an answer; NaN and infinities become null."""
    try:
        return msgspec.json.encode(answer)
    except UnicodeEncodeError:
        return msgspec.json.encode(_shown(msgspec.to_builtins(answer)))


def shown_text(path: str) -> str:
    """A path as text: each byte that is not UTF-8 becomes `%XX`. No two paths have the same text."""
    escaped = _MISTAKEN_FOR_A_BYTE.sub("%25", path)
    return _BYTE_OF_NO_TEXT.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", escaped)


def columns_of(points: Sequence[CurvePoint]) -> dict[str, Any]:
    """The fields of `Columns`."""
    names = list(dict.fromkeys(name for point in points for name in point.series))
    is_single = all(point.num_updates == 1 for point in points)
    return {
        "first_step": [point.first_step for point in points],
        "step": [point.last_step for point in points],
        "time": [point.timestamp for point in points],
        "hours": [round(point.wall_clock_hours, 6) for point in points],
        "attempt": [point.attempt for point in points],
        "series": {name: _series(name, points, is_single=is_single) for name in names},
    }


def checkpoint_rows(session: TrainingSession) -> list[CheckpointRow]:
    """The newest recorded checkpoints by step, then the quarantined ones."""
    catalog = CheckpointCatalog(session)
    newest = catalog.all()[-_MOST_CHECKPOINTS:]
    return [_checkpoint_row(each, is_superseded=catalog.is_abandoned(each)) for each in newest] + [
        CheckpointRow(
            step=each.checkpoint_step,
            path=each.checkpoint_path,
            state=CheckpointState.QUARANTINED,
            reason=each.reason,
        )
        for each in catalog.quarantined()
    ]


def event_fields(event: Event) -> dict[str, object]:
    """An event without what is long and shown elsewhere on the page."""
    fields = msgspec.to_builtins(event)
    checkpoint = fields.get("checkpoint")
    if isinstance(checkpoint, dict):
        fields |= {"checkpoint": checkpoint["checkpoint_path"], "step": checkpoint["checkpoint_step"]}
    return {name: value for name, value in fields.items() if name not in _SHOWN_ELSEWHERE}


def config_texts(config: dict[str, Any]) -> dict[str, str]:
    """Every key of a config, dotted, with its value as JSON; a very long value is cut."""
    texts = ((name, msgspec.json.encode(value).decode()) for name, value in config_leaves(config))
    return {
        name: text if len(text) <= _MOST_CONFIG_CHARACTERS else f"{text[:_MOST_CONFIG_CHARACTERS]}…"
        for name, text in texts
    }


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return {shown_text(name): _shown(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_shown(child) for child in value]
    return shown_text(value) if isinstance(value, str) else value


def _series(name: str, points: Sequence[CurvePoint], *, is_single: bool) -> Series:
    buckets = [point.series.get(name) for point in points]
    non_finite = [(at, each.num_non_finite) for at, each in enumerate(buckets) if each and each.num_non_finite]
    columns = {
        kind: [None if each is None else _rounded(getattr(each, kind)) for each in buckets]
        for kind in (("last",) if is_single else ("last", "low", "high", "mean"))
    }
    return Series(non_finite=non_finite, **columns)


def _rounded(value: float | None) -> float | None:
    """Seven digits are more than a screen shows; the journal has them all."""
    return None if value is None else float(f"{value:.7g}")


def _checkpoint_row(checkpoint: CheckpointMetadata, *, is_superseded: bool) -> CheckpointRow:
    recorded = CheckpointState.RECORDED if checkpoint.is_verifiable else CheckpointState.UNVERIFIED
    return CheckpointRow(
        step=checkpoint.checkpoint_step,
        path=checkpoint.checkpoint_path,
        state=CheckpointState.SUPERSEDED if is_superseded else recorded,
        created_at=checkpoint.created_at,
        num_bytes=checkpoint.num_bytes,
        loss=checkpoint.metrics.loss if checkpoint.metrics else None,
        tags=checkpoint.recovery_tags,
        attempt=checkpoint.attempt,
        evaluation=checkpoint.evaluation or {},
    )
