"""The Accelerate example, killed three times (once in mid-save): it ends bit for bit like the unbroken run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast import RunReader
from holdfast.testing import KilledRun, run_and_kill

ROOT = Path(__file__).parents[2]
STEPS = 58
FIRST_SAMPLE_IS_NO_NUMBER = [15, 37, 40]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(output_dir: Path) -> list[str]:
    program = str(ROOT / "examples" / "accelerate_loop.py")
    return [sys.executable, program, str(output_dir), "--steps", str(STEPS), "--seconds-per-batch", "0.01"]


def weights(output_dir: Path) -> dict[str, Any]:
    return dict(torch.load(output_dir / "weights.pt", weights_only=True))


def lines(output_dir: Path) -> list[tuple[Any, ...]]:
    return [
        (line.step, repr(line.loss), line.learning_rate, line.samples_processed, repr(line.loss_components))
        for line in RunReader.open(output_dir).history()
    ]


def has_step(output_dir: Path, step: int) -> bool:
    metrics = output_dir / "progress" / "metrics.jsonl"
    return metrics.exists() and f'"step":{step},' in metrics.read_text()


def partials(output_dir: Path) -> list[Path]:
    """What a save has while it is under way."""
    return list(output_dir.glob(".checkpoint_*.holdfast-partial"))


def killed_when(output_dir: Path, when: Callable[[], bool]) -> KilledRun:
    return run_and_kill(command(output_dir), when=when, environment=ENVIRONMENT, poll_seconds=0.0001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("whole")
    subprocess.run(command(output_dir), check=True, env=ENVIRONMENT, capture_output=True)
    return output_dir


def test_killed_three_times_it_ends_like_the_unbroken_run(whole: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    chance = random.Random(seed)
    first, last = chance.randrange(5, 18), chance.randrange(42, 54)
    print(f"seed {seed}: killed after steps {first} and {last}, and in mid-save between them")

    killed = [killed_when(tmp_path, lambda: has_step(tmp_path, first))]
    while not partials(tmp_path) and len(killed) < 6:
        # A save takes a few milliseconds; the signal may come just too late for one.
        killed.append(killed_when(tmp_path, lambda: bool(partials(tmp_path))))
    was_in_mid_save = bool(partials(tmp_path))
    killed.append(killed_when(tmp_path, lambda: has_step(tmp_path, last)))
    subprocess.run(command(tmp_path), check=True, env=ENVIRONMENT, capture_output=True)

    assert was_in_mid_save
    assert {-signal.SIGKILL} == {each.return_code for each in killed}
    expected, found = weights(whole), weights(tmp_path)
    assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    assert list(range(1, STEPS + 1)) == [line[0] for line in lines(tmp_path)]
    assert lines(whole) == lines(tmp_path)
    assert FIRST_SAMPLE_IS_NO_NUMBER == [int(line[0]) for line in lines(tmp_path) if line[1] == "nan"]
    session = RunReader.open(tmp_path).session()
    assert None is session.replay_differed_at
    assert ["crashed"] * len(killed) + ["completed"] == [attempt.how for attempt in session.attempts]
    assert [] == RunReader.open(tmp_path).problems()


def test_asked_to_stop_it_saves_and_goes_on_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    stopped = run_and_kill(
        command(tmp_path),
        when=lambda: has_step(tmp_path, 10),
        signal_number=signal.SIGTERM,
        environment=ENVIRONMENT,
    )
    step = RunReader.open(tmp_path).session().steps_completed
    saved = RunReader.open(tmp_path).session().last_checkpoint_step
    subprocess.run(command(tmp_path), check=True, env=ENVIRONMENT, capture_output=True)

    assert 75 == stopped.return_code
    assert step == saved
    expected, found = weights(whole), weights(tmp_path)
    assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    assert lines(whole) == lines(tmp_path)
    assert ["preempted", "completed"] == [attempt.how for attempt in RunReader.open(tmp_path).session().attempts]
