"""Export a run to MLflow.

MLflow cannot delete single points, so the exporter asks MLflow which steps it has. A run with superseded steps is
deleted there (it can be restored) and exported again under the same name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from crashproof.exporters.exporter import COMPONENTS, Point, RunFacts, Sent, spelled
from crashproof.exporters.names import TrackerNames
from crashproof.optional_dependencies import is_installed, missing_extra, require_versions
from crashproof.records.metrics import MEASURED
from crashproof.records.snapshots import JournalMark
from crashproof.rules.naming.trackers import MLFLOW, MLFLOW_FOLDING_CASE, parameter_names

__all__ = ["MLflowSink"]

log = logging.getLogger("crashproof")

_MOST_METRICS = 1000
"""MLflow's limit per batch."""
_MOST_PARAMETERS = 100
_MOST_BATCH_BYTES = 500_000
"""Half of what MLflow takes in one request: the rest is for punctuation and escapes."""
_LONGEST_PARAMETER = 6000
_FOLDING_DATABASES = ("mysql", "mssql")
"""Their usual collations do not tell upper from lower case."""
_SESSION, _BYTES, _CRC, _STEP = (
    "crashproof.session_id",
    "crashproof.num_bytes",
    "crashproof.crc",
    "crashproof.last_step",
)

T = TypeVar("T")


class MLflowSink:
    """One run in an MLflow experiment."""

    takes_late_points = True

    def __init__(self, tracking_uri: str, *, experiment: str = "crashproof") -> None:
        """`tracking_uri`: such as `sqlite:///mlflow.db`, or a server's address."""
        self._mlflow, self._entities = _import_mlflow()
        self._client = self._mlflow.MlflowClient(tracking_uri=tracking_uri)
        self._experiment = experiment
        self._facts: RunFacts | None = None
        self._run_id: str | None = None
        self._last_steps: dict[str, int] = {}
        self._evaluated: dict[int, dict[str, str]] = {}
        self.names = TrackerNames(MLFLOW_FOLDING_CASE if _folds_case(tracking_uri) else MLFLOW)

    def open(self, run: RunFacts) -> Sent:
        """See `Exporter`."""
        self._facts = run
        self._last_steps, self._evaluated = {}, {}
        experiment_id = self._experiment_id()
        found = self._client.search_runs(
            [experiment_id], filter_string=f"tags.`{_SESSION}` = '{run.session_id}'", max_results=1
        )
        if not found:
            self._create_run(experiment_id, run)
            return Sent()
        self._run_id = found[0].info.run_id
        for metric in found[0].data._metric_objs:
            self._read_history(metric.key)
        tags = found[0].data.tags
        return Sent(
            mark=JournalMark(num_bytes=int(tags.get(_BYTES, 0)), last_line_crc=tags.get(_CRC, "")),
            last_step=int(tags[_STEP]) if _STEP in tags else None,
            reached=max(self._last_steps.values(), default=None),
            evaluations=self._evaluated,
        )

    def forget(self) -> None:
        """See `Exporter`."""
        assert self._facts is not None
        self._client.delete_run(self._run_id)
        self._last_steps, self._evaluated = {}, {}
        self._create_run(self._experiment_id(), self._facts)

    def add(self, points: Sequence[Point], sent: Sent) -> None:
        """See `Exporter`."""
        metrics = self._metrics(points)
        for batch in _batches(metrics, most=_MOST_METRICS, num_bytes=lambda each: len(each.key.encode())):
            self._client.log_batch(self._run_id, metrics=batch)
        tags = {_BYTES: sent.mark.num_bytes, _CRC: sent.mark.last_line_crc}
        if sent.last_step is not None:
            tags[_STEP] = sent.last_step
        self._client.log_batch(
            self._run_id, tags=[self._entities.RunTag(name, str(value)) for name, value in tags.items()]
        )

    def close(self) -> None:
        """See `Exporter`."""
        if self._run_id is not None:
            self._client.set_terminated(self._run_id)
            self._run_id = None

    def _metrics(self, points: Sequence[Point]) -> Iterator[Any]:
        """Yield what an interrupted replay, which sends in this order, has not sent yet."""
        for point in points:
            new = {key: value for key, value in point.values.items() if point.step > self._last_steps.get(key, -1)}
            for key, value in (new | point.evaluation).items():
                yield self._entities.Metric(key, value, int(point.timestamp * 1000), point.step)

    def _read_history(self, key: str) -> None:
        """Read which steps of a metric are there; of an evaluation also which values."""
        history = self._client.get_metric_history(self._run_id, key)
        if key in MEASURED or key.startswith(COMPONENTS):
            self._last_steps[key] = max((each.step for each in history), default=-1)
            return
        for each in history:
            self._evaluated.setdefault(each.step, {})[key] = spelled(each.value)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return str(found.experiment_id if found else self._client.create_experiment(self._experiment))

    def _create_run(self, experiment_id: str, run: RunFacts) -> None:
        created = self._client.create_run(
            experiment_id, start_time=int(run.start_time * 1000), run_name=run.name, tags={_SESSION: run.session_id}
        )
        self._run_id = created.info.run_id
        values = {self.names[name]: str(value) for name, value in parameter_names(run.config).items()}
        _report_cut(values)
        parameters = [self._entities.Param(name, value[:_LONGEST_PARAMETER]) for name, value in values.items()]
        for batch in _batches(parameters, most=_MOST_PARAMETERS, num_bytes=lambda each: len(each.value.encode())):
            self._client.log_batch(self._run_id, params=batch)


def _batches(items: Iterable[T], *, most: int, num_bytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield all items in order, in batches that MLflow takes."""
    batch: list[T] = []
    room = _MOST_BATCH_BYTES
    for item in items:
        room -= num_bytes(item)
        if batch and (len(batch) >= most or room < 0):
            yield batch
            batch, room = [], _MOST_BATCH_BYTES - num_bytes(item)
        batch.append(item)
    if batch:
        yield batch


def _report_cut(values: dict[str, str]) -> None:
    cut = [name for name, value in values.items() if len(value) > _LONGEST_PARAMETER]
    if cut:
        log.warning(
            "MLflow takes at most %s characters of a parameter; cut: %s. The run's session.json has the full values.",
            f"{_LONGEST_PARAMETER:,}",
            ", ".join(cut),
        )


def _folds_case(tracking_uri: str) -> bool:
    """Whether names that differ only in case would be one, as far as the address tells."""
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("", "file"):
        return parts.scheme.startswith(_FOLDING_DATABASES)
    folder = Path(os.path.abspath(unquote(parts.path)))
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    swapped = existing.with_name(existing.name.swapcase())
    return swapped != existing and swapped.exists() and swapped.samefile(existing)


def _import_mlflow() -> tuple[Any, Any]:
    # The full package replaces `mlflow-skinny`.
    require_versions("mlflow", {"mlflow" if is_installed("mlflow") else "mlflow-skinny": "3.1"})
    try:
        import mlflow
        from mlflow import entities
    except ImportError:
        raise missing_extra("mlflow") from None
    return mlflow, entities
