"""One update of the training loop."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType

from crashproof.records.version import FORMAT_VERSION

__all__ = ["MetricsSnapshot", "Numbers", "Update", "snapshot_of"]


class Update(Struct, frozen=True, kw_only=True, gc=False):
    """What a training loop reports of one step, as it was handed over."""

    step: int
    """Optimizer steps done, this one included."""
    loss: object
    """A number: of Python, NumPy, or a 0-d tensor that may still be computed on a device."""
    loss_components: Mapping[str, object]
    """Likewise, by name."""
    learning_rate: object
    samples_processed: int
    tokens_processed: int
    throughput_samples_per_sec: float | None = None
    """Computed over a sliding window where it is None; likewise of tokens."""
    throughput_tokens_per_sec: float | None = None


class Numbers(Struct, frozen=True, gc=False):
    """The numbers of an update, once all are on the host."""

    loss: float
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
    """Names of values that JSON cannot hold: `loss` with `NaN`, for one; absent where there are none."""


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
    """The line of an update; the last two are what it is given as throughput."""
    return MetricsSnapshot(
        attempt=attempt,
        step=update.step,
        timestamp=timestamp,
        wall_clock_hours=wall_clock_hours,
        loss=numbers.loss,
        loss_components=numbers.components,
        learning_rate=numbers.learning_rate,
        samples_processed=update.samples_processed,
        tokens_processed=update.tokens_processed,
        throughput_samples_per_sec=samples_per_sec,
        throughput_tokens_per_sec=tokens_per_sec,
    )
