"""Export a run to MLflow.

MLflow cannot delete single points, so the exporter asks MLflow which steps it has. A run with superseded steps is
deleted there (it can be restored) and exported again under the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from crashproof.exporters.exporter import RunFacts, Sent, named_values
from crashproof.optional_dependencies import is_installed, missing_extra, require_versions
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.snapshots import JournalMark
from crashproof.rules.identity import config_leaves

__all__ = ["MLflowSink"]

_MOST_METRICS = 1000
"""MLflow's limit per batch."""
_MOST_PARAMETERS = 100
_LONGEST_PARAMETER = 500
_SESSION, _BYTES, _CRC, _STEP = (
    "crashproof.session_id",
    "crashproof.num_bytes",
    "crashproof.crc",
    "crashproof.last_step",
)
_ALLOWED = frozenset("-_./ ")


class MLflowSink:
    """One run in an MLflow experiment."""

    def __init__(self, tracking_uri: str, *, experiment: str = "crashproof") -> None:
        """`tracking_uri`: such as `sqlite:///mlflow.db`, or a server's address."""
        self._mlflow, self._entities = _import_mlflow()
        self._client = self._mlflow.MlflowClient(tracking_uri=tracking_uri)
        self._experiment = experiment
        self._facts: RunFacts | None = None
        self._run_id: str | None = None
        self._last_steps: dict[str, int] = {}

    def open(self, run: RunFacts) -> Sent:
        """See `Exporter`."""
        self._facts = run
        self._last_steps = {}
        experiment_id = self._experiment_id()
        found = self._client.search_runs(
            [experiment_id], filter_string=f"tags.`{_SESSION}` = '{run.session_id}'", max_results=1
        )
        if not found:
            self._create_run(experiment_id, run)
            return Sent()
        self._run_id = found[0].info.run_id
        for metric in found[0].data._metric_objs:
            self._last_steps[metric.key] = self._last_step(metric.key)
        tags = found[0].data.tags
        mark = JournalMark(num_bytes=int(tags.get(_BYTES, 0)), last_line_crc=tags.get(_CRC, ""))
        return Sent(mark=mark, last_step=int(tags.get(_STEP, 0)), reached=max(self._last_steps.values(), default=0))

    def forget(self) -> None:
        """See `Exporter`."""
        assert self._facts is not None
        self._client.delete_run(self._run_id)
        self._last_steps = {}
        self._create_run(self._experiment_id(), self._facts)

    def add(self, updates: Sequence[MetricsSnapshot], mark: JournalMark) -> None:
        """See `Exporter`."""
        metrics: list[Any] = []
        for metric in self._metrics(updates):
            metrics.append(metric)
            if len(metrics) == _MOST_METRICS:
                self._client.log_batch(self._run_id, metrics=metrics)
                metrics = []
        tags = {_BYTES: mark.num_bytes, _CRC: mark.last_line_crc, _STEP: updates[-1].step}
        self._client.log_batch(
            self._run_id,
            metrics=metrics,
            tags=[self._entities.RunTag(name, str(value)) for name, value in tags.items()],
        )

    def close(self) -> None:
        """See `Exporter`."""
        if self._run_id is not None:
            self._client.set_terminated(self._run_id)
            self._run_id = None

    def _metrics(self, updates: Sequence[MetricsSnapshot]) -> Iterator[Any]:
        """Yield what an interrupted replay, which sends in this order, has not sent yet."""
        for update in updates:
            for name, value in named_values(update):
                key = _key(name)
                if update.step > self._last_steps.get(key, 0):
                    yield self._entities.Metric(key, value, int(update.timestamp * 1000), update.step)

    def _last_step(self, key: str) -> int:
        return max((each.step for each in self._client.get_metric_history(self._run_id, key)), default=0)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return str(found.experiment_id if found else self._client.create_experiment(self._experiment))

    def _create_run(self, experiment_id: str, run: RunFacts) -> None:
        created = self._client.create_run(
            experiment_id, start_time=int(run.start_time * 1000), run_name=run.name, tags={_SESSION: run.session_id}
        )
        self._run_id = created.info.run_id
        parameters = [
            self._entities.Param(_key(name), str(value)[:_LONGEST_PARAMETER])
            for name, value in config_leaves(run.config)
        ]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=parameters[start : start + _MOST_PARAMETERS])


def _key(name: str) -> str:
    """Replace the characters that MLflow does not allow in a name."""
    return "".join(each if (each.isascii() and each.isalnum()) or each in _ALLOWED else "_" for each in name)[:250]


def _import_mlflow() -> tuple[Any, Any]:
    # The full package replaces `mlflow-skinny`.
    require_versions("mlflow", {"mlflow" if is_installed("mlflow") else "mlflow-skinny": "3.1"})
    try:
        import mlflow
        from mlflow import entities
    except ImportError:
        raise missing_extra("mlflow") from None
    return mlflow, entities
