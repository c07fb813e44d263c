"""Export a run's history to other tools."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.exporters.replay import Replayed, following, replay
from crashproof.reading.run_reader import RunReader

__all__ = ["export"]


class Target(StrEnum):
    """The tools that a history can be exported to."""

    CSV = "csv"
    PARQUET = "parquet"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


def export(
    folder: Folder,
    to: Annotated[Target, typer.Option(help="Format or tool to export to.")],
    into: Annotated[
        str,
        typer.Option(
            help="Destination: a file (csv, parquet), a folder (tensorboard, wandb) or a tracking URI (mlflow)."
        ),
    ],
    project: Annotated[str, typer.Option(help="Project in W&B, or experiment in MLflow.")] = "crashproof",
    follow: Annotated[bool, typer.Option("--follow", help="Keep exporting while the run is live.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Interval of --follow, in seconds.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Export a run's canonical history to a tracker or a table: each step once, across kills and resumes.

    Run it again at any time: it adds only what is new. With --follow it holds
    back the steps that a restart would recompute until the next checkpoint or
    the end of the run. A failing tracker is reported once and caught up later.

    W&B runs are written offline; upload them with `wandb sync`.

    Example: crashproof export runs/mine --to tensorboard --into logs/mine
    """
    fill = _filler(folder, to, into, project)
    if follow:
        _follow(folder, lambda: fill(True), name=f"{to.value} ({into})", seconds=seconds)
    # A run that died while it was followed will probably be restarted.
    exported = fill(follow)
    if as_json:
        print_json({"run": str(folder), "to": to.value, "into": into} | msgspec.to_builtins(exported))
        return
    say(f"{into}: {_in_words(exported, is_table=to in (Target.CSV, Target.PARQUET))}")


def _in_words(exported: Replayed, *, is_table: bool) -> str:
    what = f"{exported.num_added:,} {'rows' if is_table else 'updates added'}"
    if exported.num_evaluations_added:
        what += f" and {exported.num_evaluations_added:,} evaluations"
    up_to = "no step is recorded yet" if exported.last_step is None else f"up to step {exported.last_step:,}"
    again = " Rebuilt from the start: something that it had was superseded." if exported.has_begun_anew else ""
    return f"{what}, {up_to}.{again}"


def _filler(folder: Path, to: Target, into: str, project: str) -> Callable[[bool], Replayed]:
    """A function that updates the target; its argument: hold back the steps that a restart would recompute."""
    match to:
        case Target.CSV | Target.PARQUET:
            from crashproof.exporters.tables import write_csv, write_parquet

            write = write_csv if to is Target.CSV else write_parquet
            return lambda _: _written_table(folder, write(folder, into))
        case Target.TENSORBOARD:
            from crashproof.exporters.tensorboard import TensorBoardSink

            board = TensorBoardSink(into)
            return lambda holds_back: replay(folder, board, holds_back=holds_back)
        case Target.WANDB:
            from crashproof.exporters.wandb import WandbSink

            weights = WandbSink(into, project=project)
            return lambda holds_back: replay(folder, weights, holds_back=holds_back)
        case Target.MLFLOW:
            from crashproof.exporters.mlflow import MLflowSink

            flow = MLflowSink(into, experiment=project)
            return lambda holds_back: replay(folder, flow, holds_back=holds_back)


def _follow(folder: Path, fill: Callable[[], object], *, name: str, seconds: float) -> None:
    reader = RunReader.open(folder)
    fill()
    with following(fill, name=name, seconds_between=seconds):
        # Ctrl-C ends the following; what is there by then is still exported.
        try:
            while reader.holder() is not None:
                time.sleep(min(seconds, 1.0))
        except KeyboardInterrupt:
            return


def _written_table(folder: Path, num_rows: int) -> Replayed:
    session = RunReader.open(folder).session()
    last_step = session.steps_completed if session.metrics_history else None
    return Replayed(num_added=num_rows, last_step=last_step, has_begun_anew=False)
