"""A finished run of a distillation trainer, started again by the same command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from crashproof import RunReader
from training.distill_kd import main

CONFIG = """
model: {vocab_size: 1024, d_model: 16}
train: {batch_size: 2, steps: 4}
data: {held_out: 0.25}
progress: {checkpoint_interval: 2, eval_every: 3}
"""


Start = Callable[..., int]


def start_in(folder: Path, *overrides: str) -> int:
    """The same command at every start."""
    config = folder / "c.yaml"
    config.write_text(CONFIG)
    return main("kd", ["--config", str(config), "--output-dir", str(folder / "out"), "teacher.steps=2", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained to its end, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    start_in(folder)
    return folder / "out"


@pytest.fixture
def start(finished: Path, tmp_path: Path) -> Start:
    """Starts the command again in a copy of the finished run."""
    shutil.copytree(finished, tmp_path / "out")
    return partial(start_in, tmp_path)


def evaluated(out: Path) -> list[int]:
    return [each.step for each in RunReader.open(out).session().evaluations]


def drop_last_evaluation(progress: Path) -> None:
    """What a kill between the last checkpoint and the evaluation at the end leaves."""
    lines = (progress / "events.jsonl").read_bytes().splitlines(keepends=True)
    cut = max(place for place, line in enumerate(lines) if json.loads(line)["event"] == "evaluation_recorded")
    (progress / "events.jsonl").write_bytes(b"".join(lines[:cut]))
    for name in ("session.json", "progress.json", "checkpoints.json"):
        (progress / name).unlink()


def test_nothing_is_trained_and_the_student_is_saved_again(start, tmp_path):
    steps = len(list(RunReader.open(tmp_path / "out").all_updates()))
    for path in (tmp_path / "out").glob("student_*/*"):
        path.unlink()

    assert 0 == start()
    assert steps == len(list(RunReader.open(tmp_path / "out").all_updates()))
    assert list((tmp_path / "out").glob("student_4/*.safetensors"))
    assert [3, 4] == evaluated(tmp_path / "out")


def test_a_lowered_target_trains_nothing(start, tmp_path):
    assert 0 == start("train.steps=2")
    assert [1, 2, 3, 4] == [line.step for line in RunReader.open(tmp_path / "out").history()]


def test_the_evaluation_at_the_end_that_a_kill_prevented_takes_place(start, tmp_path):
    drop_last_evaluation(tmp_path / "out" / "progress")
    assert [3] == evaluated(tmp_path / "out")

    assert 0 == start()
    assert [3, 4] == evaluated(tmp_path / "out")
    assert 4 == len(list(RunReader.open(tmp_path / "out").all_updates()))
