"""A run as data frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from crashproof.errors import ConfigError
from crashproof.optional_dependencies import is_installed, missing_extra, require_versions
from crashproof.reading.run_reader import RunReader
from crashproof.records.metrics import COLUMNS, COMPONENT, MetricsSnapshot
from crashproof.records.session import Evaluation
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.naming.evaluations import evaluation_names
from crashproof.rules.naming.trackers import TABLE

__all__ = ["LoadedRun", "load", "rows_of"]

_ENGINES = {"pandas": "2.2", "polars": "1.30"}
"""The oldest supported version of each."""
_PLACE = ("step", "attempt", "timestamp")
"""Where and when an evaluation was."""
_FIELDS = tuple(name for name in MetricsSnapshot.__struct_fields__ if name in COLUMNS)


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A run as frames and plain values, each read on first access."""

    reader: RunReader
    engine: str
    """The library of the frames: `pandas` or `polars`."""

    @cached_property
    def metrics(self) -> Any:
        """The canonical history, each step once: a frame with a column per field, components as `loss_components.kd`.

        Results on held-out data are in the row of their step, as `eval_loss`; a step with nothing else has a row of
        its own. NaN and infinities are as they were reported.
        """
        return self._frame(list(rows_of(self.reader)))

    @cached_property
    def evaluations(self) -> Any:
        """The results on held-out data that stand, a row per step, with `step`, `attempt` and `timestamp`.

        A result has the name that it was recorded with; one that is called like one of these three is `eval_step`.
        """
        found = self.reader.evaluations()
        names = {name: name for each in found for name in each.results}
        for taken in names.keys() & set(_PLACE):
            names[taken] = next(name for name in _longer(f"eval_{taken}") if name not in names)
        rows = (_place_of(each) | {names[name]: value for name, value in each.results.items()} for each in found)
        return self._frame(list(rows))

    @cached_property
    def checkpoints(self) -> Any:
        """The recorded checkpoints: `step`, `path`, `created_at`, `num_bytes`, `digest`, `attempt`."""
        return self._frame(
            [
                {
                    "step": each.checkpoint_step,
                    "path": each.checkpoint_path,
                    "created_at": each.created_at,
                    "num_bytes": each.num_bytes,
                    "digest": each.digest,
                    "attempt": each.attempt,
                }
                for each in CheckpointCatalog(self.reader.session()).all()
            ]
        )

    @cached_property
    def attempts(self) -> Any:
        """Every attempt: when, where, which steps, how it ended."""
        return self._frame([msgspec.to_builtins(each) for each in self.reader.session().attempts])

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config that the run was started with, without secrets."""
        return self.reader.session().config

    def _frame(self, rows: list[dict[str, Any]]) -> Any:
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [row.get(name) for row in rows] for name in names}
        if self.engine == "polars":
            import polars

            return polars.DataFrame(columns, strict=False)
        import pandas

        return pandas.DataFrame(columns)


def load(run_dir: str | Path, *, engine: str | None = None) -> LoadedRun:
    """Read a run into frames: `crashproof.load("runs/mine").metrics`.

    Args:
        run_dir: The run's output folder; the run may be live.
        engine: `pandas` or `polars`; by default the one that is installed, pandas first.

    Raises:
        NotARun: the folder holds no run.
        MissingExtra: the requested library is not installed, or neither is.
    """
    chosen = _engine(engine)
    return LoadedRun(reader=RunReader.open(Path(run_dir)), engine=chosen)


def _engine(wanted: str | None) -> str:
    if wanted is not None and wanted not in _ENGINES:
        raise ConfigError(f"There is no engine {wanted!r}.", hint="Pass pandas or polars.")
    for name in _ENGINES if wanted is None else (wanted,):
        if is_installed(name):
            require_versions(name, {name: _ENGINES[name]})
            return name
    raise missing_extra(wanted or "pandas")


def rows_of(reader: RunReader) -> Iterator[dict[str, float | None]]:
    """The rows of a run's table by column: each step once, in order, with its update and its evaluation."""
    evaluations = reader.evaluations()
    names = evaluation_names((name for each in evaluations for name in each.results), separator=TABLE.separator)
    for update, evaluation in reader.rows():
        row: dict[str, float | None] = {} if evaluation is None else dict(_place_of(evaluation))
        if update is not None:
            row |= {name: getattr(update, name) for name in _FIELDS}
            row |= {f"{COMPONENT}{name}": value for name, value in update.loss_components.items()}
        if evaluation is not None:
            row |= {names[name]: value for name, value in evaluation.results.items() if name in names}
        yield row


def _place_of(evaluation: Evaluation) -> dict[str, float]:
    return {name: getattr(evaluation, name) for name in _PLACE}


def _longer(name: str) -> Iterator[str]:
    while True:
        yield name
        name += "_"
