"""One update of the training loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from msgspec import UNSET, Struct, UnsetType, structs

from crashproof.records.version import FORMAT_VERSION

__all__ = [
    "COLUMNS",
    "COMPONENT",
    "INTEGERS",
    "MEASURED",
    "SERIES",
    "MetricsSnapshot",
    "Numbers",
    "Update",
    "reported_losses",
    "snapshot_of",
]


class Update(Struct, frozen=True, kw_only=True, gc=False):
    """What a training loop reports for one step, unconverted."""

    step: int
    """Optimizer steps done, this one included."""
    loss: object
    """A Python number, a NumPy scalar, or a 0-d tensor whose value may not be computed yet; None: there is none."""
    loss_components: Mapping[str, object]
    """By name; each as `loss`."""
    learning_rate: object
    samples_processed: int
    tokens_processed: int
    throughput_samples_per_sec: float | None = None
    """None: computed over a sliding window; likewise for tokens."""
    throughput_tokens_per_sec: float | None = None


class Numbers(Struct, frozen=True, gc=False):
    """The numbers of an update, once all are on the host."""

    loss: float | None
    """None if the training loop reported none."""
    components: dict[str, float]
    learning_rate: float


class MetricsSnapshot(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION, gc=False):
    """One update of the training loop: one line of `metrics.jsonl`."""

    attempt: int = 1
    """The process life that computed it."""
    step: int
    """Optimizer steps done so far."""
    timestamp: float
    """Seconds since 1970."""
    wall_clock_hours: float
    """Hours trained over all attempts, without pauses and downtime."""
    loss: float
    loss_components: dict[str, float]
    learning_rate: float
    samples_processed: int
    tokens_processed: int
    throughput_samples_per_sec: float | None = None
    throughput_tokens_per_sec: float | None = None
    nonfinite: dict[str, str] | UnsetType = UNSET
    """Values that JSON cannot hold, by name, such as `{"loss": "NaN"}`; absent if there are none."""
    without_loss: bool | UnsetType = UNSET
    """True if the training loop reported no loss, so that `loss` is NaN; absent otherwise."""


_PLACE = ("step", "attempt", "timestamp", "wall_clock_hours")
_KINDS = (int, float, float | None)
_NUMBERS = {each.name: each.type for each in structs.fields(MetricsSnapshot) if each.type in _KINDS}

COLUMNS = (*_PLACE, *(name for name in _NUMBERS if name not in _PLACE))
"""The fields that are one number each: where and when the update was, then what it measured."""
MEASURED = COLUMNS[len(_PLACE) :]
INTEGERS = frozenset(name for name in COLUMNS if _NUMBERS[name] is int)
SERIES = tuple(name for name in MEASURED if name not in INTEGERS)
"""Those that curves are drawn of: no counters."""
COMPONENT = "loss_components."
"""Begins the name of a component's column or series, such as `loss_components.kd`."""


def snapshot_of(
    update: Update,
    numbers: Numbers,
    *,
    attempt: int,
    timestamp: float,
    wall_clock_hours: float,
    samples_per_sec: float | None,
    tokens_per_sec: float | None,
) -> MetricsSnapshot:
    """The line of an update, with the throughput given or measured."""
    return MetricsSnapshot(
        attempt=attempt,
        step=update.step,
        timestamp=timestamp,
        wall_clock_hours=wall_clock_hours,
        loss=math.nan if numbers.loss is None else numbers.loss,
        loss_components=numbers.components,
        learning_rate=numbers.learning_rate,
        samples_processed=update.samples_processed,
        tokens_processed=update.tokens_processed,
        throughput_samples_per_sec=samples_per_sec,
        throughput_tokens_per_sec=tokens_per_sec,
        without_loss=True if numbers.loss is None else UNSET,
    )


def reported_losses(lines: Iterable[MetricsSnapshot]) -> list[float]:
    """The losses of those lines that have one."""
    return [line.loss for line in lines if not line.without_loss]
