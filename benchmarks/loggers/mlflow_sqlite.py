"""MLflow with its SQLite store."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient

from benchmarks.loggers.step_logger import RING, ring_of_scalars

__all__ = ["MlflowSqlite"]


class MlflowSqlite:
    """`mlflow.log_metrics`: one transaction a step."""

    def __init__(self, folder: Path) -> None:
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._ring = ring_of_scalars()
        mlflow.set_tracking_uri(_address(folder))
        mlflow.create_experiment("bench", artifact_location=str(folder / "artifacts"))
        mlflow.set_experiment("bench")
        mlflow.start_run()

    def prepare(self, step: int) -> Any:
        """See `StepLogger`."""
        return self._ring[step % RING]

    def log(self, step: int, prepared: Any) -> None:
        """See `StepLogger`."""
        mlflow.log_metrics(prepared, step=step)

    def close(self) -> None:
        """See `StepLogger`."""
        mlflow.end_run()

    @staticmethod
    def steps_found(folder: Path) -> list[int]:
        """See `StepLogger`."""
        client = MlflowClient(_address(folder))
        experiment = client.get_experiment_by_name("bench")
        assert experiment is not None
        counts: Counter[int] = Counter()
        for run in client.search_runs([experiment.experiment_id]):
            for name in ring_of_scalars()[0]:
                counts.update(point.step for point in client.get_metric_history(run.info.run_id, name))
        return [step for step, count in counts.items() if count == len(ring_of_scalars()[0])]


def _address(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"
