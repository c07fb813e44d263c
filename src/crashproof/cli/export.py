"""Give a run's history to other tools."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.exporters.replay import Replayed, following, replay
from crashproof.reading.run_reader import RunReader

__all__ = ["export"]


class Target(StrEnum):
    """Where a history can go."""

    CSV = "csv"
    PARQUET = "parquet"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


def export(
    folder: Folder,
    to: Annotated[Target, typer.Option(help="The tool.")],
    into: Annotated[
        str, typer.Option(help="A file (csv, parquet), a folder (tensorboard, wandb), a tracking address (mlflow).")
    ],
    project: Annotated[str, typer.Option(help="Of W&B, or the experiment of MLflow.")] = "crashproof",
    follow: Annotated[bool, typer.Option("--follow", help="Go on while the run lives.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks of --follow.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Replay a run's canonical history into a tracker or a table: each step once, whatever was killed and resumed.

    Start it again at any time: it adds what is new, and a second time nothing.
    With --follow it holds back the steps that a restart would compute again,
    until the next checkpoint or the run's end; a tracker that fails is told of
    once, and is caught up with later.

    W&B runs are written offline: `wandb sync` uploads them.

    Example: crashproof export runs/mine --to tensorboard --into logs/mine
    """
    fill = _filler(folder, to, into, project)
    if follow:
        _follow(folder, lambda: fill(True), name=f"{to.value} ({into})", seconds=seconds)
    # Of a run that died while it was followed, a restart is to be expected.
    answer = fill(follow)
    if as_json:
        print_json({"run": str(folder), "to": to.value, "into": into, **answer})
        return
    again = " It was filled anew: the run had gone back behind steps that it had." if answer["has_begun_anew"] else ""
    what = "rows" if to in (Target.CSV, Target.PARQUET) else "updates added"
    say(f"{into}: {answer['num_added']:,} {what}, up to step {answer['last_step']:,}.{again}")


def _filler(folder: Path, to: Target, into: str, project: str) -> Callable[[bool], dict[str, Any]]:
    """What brings the target up to date; told whether to hold back what a restart would compute again."""
    match to:
        case Target.CSV | Target.PARQUET:
            from crashproof.exporters.tables import write_csv, write_parquet

            write = write_csv if to is Target.CSV else write_parquet
            return lambda _: _table_answer(folder, write(folder, into))
        case Target.TENSORBOARD:
            from crashproof.exporters.tensorboard import TensorBoardSink

            board = TensorBoardSink(into)
            return lambda holds_back: _answer(replay(folder, board, holds_back=holds_back))
        case Target.WANDB:
            from crashproof.exporters.wandb import WandbSink

            weights = WandbSink(into, project=project)
            return lambda holds_back: _answer(replay(folder, weights, holds_back=holds_back))
        case Target.MLFLOW:
            from crashproof.exporters.mlflow import MLflowSink

            flow = MLflowSink(into, experiment=project)
            return lambda holds_back: _answer(replay(folder, flow, holds_back=holds_back))


def _follow(folder: Path, fill: Callable[[], object], *, name: str, seconds: float) -> None:
    reader = RunReader.open(folder)
    fill()
    with following(fill, name=name, seconds_between=seconds):
        # Ctrl-C ends the following; what is there by then is added.
        try:
            while reader.holder() is not None:
                time.sleep(min(seconds, 1.0))
        except KeyboardInterrupt:
            return


def _answer(replayed: Replayed) -> dict[str, Any]:
    return {
        "num_added": replayed.num_added,
        "last_step": replayed.last_step,
        "has_begun_anew": replayed.has_begun_anew,
    }


def _table_answer(folder: Path, num_rows: int) -> dict[str, Any]:
    steps = RunReader.open(folder).session().steps_completed
    return {"num_added": num_rows, "last_step": steps, "has_begun_anew": False}
