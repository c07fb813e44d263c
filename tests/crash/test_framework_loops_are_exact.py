"""The Lightning and Accelerate examples, killed three times (once in mid-save), end like the uninterrupted run."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from crashproof import RunReader
from crashproof.testing import KilledRun, run_and_kill

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A program that trains a small model inside a framework."""

    program: str
    options: tuple[str, ...] = ()
    num_steps: int
    steps_without_a_loss: tuple[int, ...]
    """Where the loss is no number."""
    partial: str
    """What a save has while it is under way."""

    def command(self, output_dir: Path) -> list[str]:
        program = str(ROOT / "examples" / self.program)
        return [sys.executable, program, str(output_dir), "--seconds-per-batch", "0.01", *self.options]

    def train(self, output_dir: Path) -> None:
        subprocess.run(self.command(output_dir), check=True, env=ENVIRONMENT, capture_output=True)

    def killed(self, output_dir: Path, when: Callable[[], bool]) -> KilledRun:
        return run_and_kill(self.command(output_dir), when=when, environment=ENVIRONMENT, poll_seconds=0.0001)

    def is_saving(self, output_dir: Path) -> bool:
        return any(output_dir.glob(self.partial))


EXAMPLES = {
    "lightning": Example(
        program="lightning_trainer.py",
        num_steps=57,
        steps_without_a_loss=(15, 38, 40),
        partial=".checkpoint_*.ckpt.crashproof-partial",
    ),
    "accelerate": Example(
        program="accelerate_loop.py",
        options=("--steps", "58"),
        num_steps=58,
        steps_without_a_loss=(15, 37, 40),
        partial=".checkpoint_*.crashproof-partial",
    ),
}


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


@pytest.fixture(scope="module", params=EXAMPLES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, Path]:
    """An example, and its uninterrupted run."""
    pytest.importorskip(request.param)
    output_dir = tmp_path_factory.mktemp("reference")
    EXAMPLES[request.param].train(output_dir)
    return EXAMPLES[request.param], output_dir


def test_killed_three_times_it_ends_like_the_uninterrupted_run(trained: tuple[Example, Path], tmp_path: Path) -> None:
    example, reference = trained
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    chance = random.Random(seed)
    first, last = chance.randrange(5, 18), chance.randrange(42, 54)
    print(f"seed {seed}: killed after steps {first} and {last}, and in mid-save between them")

    killed = [example.killed(tmp_path, lambda: has_step(tmp_path, first))]
    while not example.is_saving(tmp_path) and len(killed) < 6:
        # A save takes a few milliseconds; the signal may come just too late for one.
        killed.append(example.killed(tmp_path, lambda: example.is_saving(tmp_path)))
    was_in_mid_save = example.is_saving(tmp_path)
    killed.append(example.killed(tmp_path, lambda: has_step(tmp_path, last)))
    example.train(tmp_path)

    assert was_in_mid_save
    assert {-signal.SIGKILL} == {each.return_code for each in killed}
    expected, found = weights(reference), weights(tmp_path)
    assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    assert list(range(1, example.num_steps + 1)) == [line[0] for line in lines(tmp_path)]
    assert lines(reference) == lines(tmp_path)
    assert list(example.steps_without_a_loss) == [int(line[0]) for line in lines(tmp_path) if line[1] == "nan"]
    session = RunReader.open(tmp_path).session()
    assert None is session.replay_differed_at
    assert ["crashed"] * len(killed) + ["completed"] == [attempt.how for attempt in session.attempts]
    assert [] == RunReader.open(tmp_path).problems()


@pytest.mark.long
def test_asked_to_stop_it_saves_and_goes_on_as_if_it_had_not_been(
    trained: tuple[Example, Path], tmp_path: Path
) -> None:
    example, reference = trained
    stopped = run_and_kill(
        example.command(tmp_path),
        when=lambda: has_step(tmp_path, 10),
        signal_number=signal.SIGTERM,
        environment=ENVIRONMENT,
    )
    step = RunReader.open(tmp_path).session().steps_completed
    saved = RunReader.open(tmp_path).session().last_checkpoint_step
    example.train(tmp_path)

    assert 75 == stopped.return_code
    assert step == saved
    expected, found = weights(reference), weights(tmp_path)
    assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    assert lines(reference) == lines(tmp_path)
    session = RunReader.open(tmp_path).session()
    assert ["preempted", "completed"] == [attempt.how for attempt in session.attempts]
    assert 0 == session.steps_recomputed


@pytest.mark.parametrize("trained", ["lightning"], indirect=True)
def test_what_lightning_measured_is_there_once_a_step(trained: tuple[Example, Path]) -> None:
    evaluations = RunReader.open(trained[1]).session().evaluations

    assert [19, 38, 57] == [each.step for each in evaluations]
    assert all(math.isfinite(each.results["val_loss"]) for each in evaluations)
