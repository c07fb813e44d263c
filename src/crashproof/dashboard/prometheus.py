"""The metrics of all runs for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from crashproof.records.progress import ProgressSummary
from crashproof.records.states import HealthState
from crashproof.rules.rank_times.comparison import times_the_median

__all__ = ["metrics_page"]

_HOUR = 3600.0
_NUMBERS: tuple[tuple[str, str, Callable[[ProgressSummary], float | None]], ...] = (
    ("steps_completed", "Optimizer steps done.", lambda run: run.steps_completed),
    ("steps_target", "Optimizer steps to do.", lambda run: run.total_steps_target),
    ("steps_recomputed", "Steps that were computed more than once.", lambda run: run.steps_recomputed),
    ("attempt", "Number of the newest attempt.", lambda run: run.attempt),
    ("loss", "The newest loss.", lambda run: run.loss_trend.current_loss),
    ("loss_moving_average", "Exponential moving average of the loss.", lambda run: run.loss_trend.moving_avg_loss),
    ("learning_rate", "The newest learning rate.", lambda run: run.learning_rate),
    ("samples_per_second", "Throughput in samples.", lambda run: run.throughput_samples_per_sec),
    ("tokens_per_second", "Throughput in tokens.", lambda run: run.throughput_tokens_per_sec),
    ("trained_seconds", "Training time.", lambda run: run.elapsed_wall_clock_hours * _HOUR),
    (
        "remaining_seconds",
        "Training time left at the recent pace.",
        lambda run: _seconds(run.estimated_remaining_hours),
    ),
    ("last_update_timestamp_seconds", "When the newest update was written.", lambda run: run.last_update_time),
    ("last_checkpoint_step", "Step of the newest checkpoint.", lambda run: run.last_checkpoint_step),
    ("checkpoints", "Checkpoints that are recorded.", lambda run: run.checkpoints_count),
    ("saves_failed_in_a_row", "Saves failed since the newest checkpoint.", lambda run: run.failed_saves.in_a_row),
    ("bad_steps", "Steps whose loss was not finite, or a spike.", lambda run: run.bad_steps_found),
    ("rollbacks", "Times that training went back to a checkpoint for a bad step.", lambda run: run.rollbacks),
    ("samples_left_out", "Samples left out for bad steps.", lambda run: run.samples_left_out),
    ("saves_failed", "Saves failed since the session began.", lambda run: run.failed_saves.total),
    ("goodput_ratio", "Productive share of the wall time.", lambda run: run.goodput_seconds.goodput_fraction),
    ("slowest_rank", "The rank with the most work of its own on a step.", lambda run: _slowest_rank(run)),
    (
        "slowest_rank_ratio",
        "Work of the slowest rank on a step, in medians of all ranks.",
        lambda run: None if run.rank_times is None else times_the_median(run.rank_times),
    ),
    ("teacher_answers", "Answers paid for.", lambda run: run.api_responses_saved),
    ("teacher_cost_dollars", "Paid to teachers.", lambda run: run.api_cost),
    ("teacher_failures", "Requests to teachers that failed.", lambda run: run.connection_failures),
    ("restarts", "Restarts by a supervisor.", lambda run: run.supervision.restarts),
    ("hung_seconds", "Time in hangs that a supervisor ended.", lambda run: run.supervision.hung_seconds),
    (
        "lost_seconds",
        "Training time behind the newest checkpoint at restarts.",
        lambda run: run.supervision.lost_seconds,
    ),
    ("stop_requests", "Requests to stop and notices of preemption.", lambda run: run.supervision.notices),
    ("stop_requests_saved", "Of these, how many led to a checkpoint.", lambda run: run.supervision.notices_saved),
    ("damage_found", "Damaged journal records quarantined.", lambda run: run.damage_found),
)


def metrics_page(runs: Mapping[str, ProgressSummary | None], *, accept: str) -> tuple[bytes, str]:
    """Return the metrics of all runs, by name, and their content type; None: the run cannot be read."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs(runs))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Runs(Collector):
    def __init__(self, runs: Mapping[str, ProgressSummary | None]) -> None:
        self._states = {name: HealthState.UNREADABLE if run is None else run.health for name, run in runs.items()}
        self._values = {name: {} if run is None else self._values_of(name, run) for name, run in runs.items()}

        self._evaluations = GaugeMetricFamily(
            "crashproof_evaluation", "The newest results on held-out data.", labels=["run", "name"]
        )
        for name, run in runs.items():
            for result, value in {} if run is None else run.evaluation.items():
                self._evaluations.add_metric([name, result], value)

        self._ends = GaugeMetricFamily(
            "crashproof_process_ends", "Ends of supervised processes, by cause.", labels=["run", "cause"]
        )
        for name, run in runs.items():
            for cause, count in {} if run is None else run.supervision.ends.items():
                self._ends.add_metric([name, cause], count)

    def collect(self) -> Iterator[Metric]:
        for name, text, _ in _NUMBERS:
            family = GaugeMetricFamily(f"crashproof_{name}", text, labels=["run"])
            for run, values in self._values.items():
                if name in values:
                    family.add_metric([run], values[name])
            yield family
        yield self._evaluations
        yield self._ends
        health = GaugeMetricFamily("crashproof_health", "1 for the state that a run is in.", labels=["run", "state"])
        for run, is_in in self._states.items():
            for state in HealthState:
                health.add_metric([run, state], float(is_in == state))
        yield health

    def _values_of(self, name: str, run: ProgressSummary) -> dict[str, float]:
        read = {number: value for number, _, reader in _NUMBERS if (value := reader(run)) is not None}
        try:
            return {number: float(value) for number, value in read.items()}
        except OverflowError:
            # An integer beyond all floats, from a damaged file: one run must not hide the others.
            self._states[name] = HealthState.UNREADABLE
            return {}


def _slowest_rank(run: ProgressSummary) -> int | None:
    return run.rank_times.slowest[0].rank if run.rank_times is not None and run.rank_times.slowest else None


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * _HOUR
