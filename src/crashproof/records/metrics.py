"""One update of the training loop."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from crashproof.records.version import FORMAT_VERSION

__all__ = ["COLUMNS", "MetricsSnapshot"]


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


_NESTED = frozenset({"loss_components", "nonfinite"})
COLUMNS = ("step", *(name for name in MetricsSnapshot.__struct_fields__ if name not in {"step", *_NESTED}))
"""Of a table of updates; each component of the loss is a further one, such as `loss_components.kd`."""
