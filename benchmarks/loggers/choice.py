"""Which loggers are measured."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.loggers.step_logger import StepLogger
from crashproof.optional_dependencies import is_installed

__all__ = ["CHOICES", "FLOOR", "NOTHING", "OURS", "Choice", "installed", "missing_note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to keep a step's scalars."""

    name: str
    title: str
    """Its row in a table."""
    place: str
    """Module and class, imported in the process that is measured."""
    package: str
    """Without it there is no row."""

    def kind(self) -> type[StepLogger]:
        """Its class."""
        module, name = self.place.split(":")
        kind: type[StepLogger] = getattr(importlib.import_module(f"benchmarks.loggers.{module}"), name)
        return kind


FLOOR = Choice(name="floor", title="`orjson.dumps` + `os.write`", place="floor:Floor", package="orjson")
OURS = Choice(name="ours", title="`update_metrics`", place="ours:Ours", package="msgspec")
NOTHING = Choice(name="nothing", title="the loop alone", place="nothing:Nothing", package="msgspec")
CHOICES = (
    FLOOR,
    OURS,
    Choice(name="csv", title="Lightning `CSVLogger`", place="lightning_csv:LightningCsv", package="lightning"),
    Choice(
        name="tensorboard", title="TensorBoard", place="tensorboard_events:TensorBoardEvents", package="tensorboard"
    ),
    Choice(name="wandb", title="W&B offline", place="wandb_offline:WandbOffline", package="wandb"),
    Choice(name="mlflow", title="MLflow, SQLite", place="mlflow_sqlite:MlflowSqlite", package="mlflow-skinny"),
)


def installed(names: Sequence[str] = ()) -> list[Choice]:
    """Those of these names, or of all, whose packages are installed here."""
    wanted = [choice for choice in CHOICES if not names or choice.name in names]
    return [choice for choice in wanted if is_installed(choice.package)]


def missing_note() -> list[str]:
    """What has no row for want of its package, as a sentence."""
    missing = [choice for choice in CHOICES if not is_installed(choice.package)]
    named = ", ".join(f"{choice.title} (`pip install {choice.package}`)" for choice in missing)
    return [f"Not installed, so not measured: {named}."] if missing else []
