"""The state of all runs for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

__all__ = ["STATES", "metrics_page"]

STATES = (
    *("starting", "running", "stalled", "diverging", "non_finite", "complete", "ended_early", "preempted"),
    *("raised", "crashed", "replaced", "adopted", "not_started", "unreadable"),
)
"""All that `health` may say."""

_HOUR = 3600.0
_NUMBERS: tuple[tuple[str, str, Callable[[dict[str, Any]], Any]], ...] = (
    ("steps_completed", "Optimizer steps done.", lambda run: run["steps_completed"]),
    ("steps_target", "Optimizer steps to do.", lambda run: run["total_steps_target"]),
    ("steps_recomputed", "Steps that were computed more than once.", lambda run: run["steps_recomputed"]),
    ("attempt", "Number of the newest attempt.", lambda run: run["attempt"]),
    ("loss", "The newest loss.", lambda run: run["loss_trend"]["current_loss"]),
    (
        "loss_moving_average",
        "Exponential moving average of the loss.",
        lambda run: run["loss_trend"]["moving_avg_loss"],
    ),
    ("learning_rate", "The newest learning rate.", lambda run: run["learning_rate"]),
    ("samples_per_second", "Throughput in samples.", lambda run: run["throughput_samples_per_sec"]),
    ("tokens_per_second", "Throughput in tokens.", lambda run: run["throughput_tokens_per_sec"]),
    ("trained_seconds", "Training time.", lambda run: run["elapsed_wall_clock_hours"] * _HOUR),
    (
        "remaining_seconds",
        "Training time left at the recent pace.",
        lambda run: _seconds(run["estimated_remaining_hours"]),
    ),
    ("last_update_timestamp_seconds", "When the newest update was written.", lambda run: run["last_update_time"]),
    ("last_checkpoint_step", "Step of the newest checkpoint.", lambda run: run["last_checkpoint_step"]),
    ("checkpoints", "Checkpoints that are recorded.", lambda run: run["checkpoints_count"]),
    ("goodput_ratio", "Productive share of the wall time.", lambda run: run["goodput_seconds"]["goodput_fraction"]),
    ("teacher_answers", "Answers paid for.", lambda run: run["api_responses_saved"]),
    ("teacher_cost_dollars", "Paid to teachers.", lambda run: run["api_cost"]),
    ("teacher_failures", "Requests to teachers that failed.", lambda run: run["connection_failures"]),
    ("damage_found", "Damaged pieces of journals set aside.", lambda run: run["damage_found"]),
)


def metrics_page(runs: Iterable[dict[str, Any]], *, accept: str) -> tuple[bytes, str]:
    """All numbers of all runs' summaries, and their content type.

    A run that cannot be read has `{"name": …, "health": "unreadable"}` alone.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs(list(runs)))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Runs(Collector):
    def __init__(self, runs: Sequence[dict[str, Any]]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        readable = [run for run in self._runs if "steps_completed" in run]
        for name, text, read in _NUMBERS:
            family = GaugeMetricFamily(f"crashproof_{name}", text, labels=["run"])
            for run in readable:
                value = read(run)
                if value is not None:
                    family.add_metric([run["name"]], value)
            yield family
        health = GaugeMetricFamily("crashproof_health", "1 for the state that a run is in.", labels=["run", "state"])
        for run in self._runs:
            for state in STATES:
                health.add_metric([run["name"], state], float(run["health"] == state))
        yield health


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * _HOUR
