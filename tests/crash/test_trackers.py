"""A run that is killed twice, replayed after each kill: every tracker's own reader finds each step once."""

from __future__ import annotations

import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof import RunReader
from crashproof.exporters.replay import replay

PROGRAM = Path(__file__).parents[1] / "page_program.py"
TOTAL_STEPS = 240

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def seen(value: float) -> float:
    """NaN as a number that no loss has, so that lists can be compared."""
    return -1.0 if math.isnan(value) else value


def assert_same(history: list[tuple[int, float]], points: list[tuple[int, float]]) -> None:
    # TensorBoard keeps floats of 32 bits.
    assert [step for step, _ in history] == [step for step, _ in points]
    assert pytest.approx([loss for _, loss in history], rel=1e-6) == [loss for _, loss in points]


def points_of_tensorboard(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return [(each.step, seen(each.value)) for each in reader.Scalars("loss")]


def points_of_mlflow(uri: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("crashproof").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    return [(each.step, seen(each.value)) for each in sorted(history, key=lambda each: each.step)]


@pytest.mark.timeout(240)
def test_after_two_kills_every_tracker_has_each_step_once(tmp_path):
    for name in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(name)
    from crashproof.exporters.mlflow import MLflowSink
    from crashproof.exporters.tensorboard import TensorBoardSink
    from crashproof.exporters.wandb import WandbSink

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    run, uri = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for killed_at in (moments.randrange(50, 120), moments.randrange(125, 230), 0):
        subprocess.run(
            [sys.executable, str(PROGRAM), str(run), str(TOTAL_STEPS), "0.002", str(killed_at)], check=False
        )
        for exporter in (TensorBoardSink(tmp_path / "tb"), WandbSink(tmp_path / "w"), MLflowSink(uri)):
            replay(run, exporter)

    history = [(line.step, seen(line.loss)) for line in RunReader.open(run).history()]
    note = json.loads((tmp_path / "w" / "crashproof-wandb.json").read_bytes())
    assert list(range(1, TOTAL_STEPS + 1)) == [step for step, _ in history]
    assert -1.0 == dict(history)[150]
    assert_same(history, points_of_tensorboard(tmp_path / "tb"))
    assert_same(history, points_of_mlflow(uri))
    assert TOTAL_STEPS == note["sent"]["last_step"]
    assert len(note["folders"]) == len(list((tmp_path / "w" / "wandb").glob("offline*")))
