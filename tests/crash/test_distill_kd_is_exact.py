"""`distill_kd`, killed and started again, computes bit for bit what the uninterrupted run does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crashproof import RunReader
from crashproof.records.events import ReplayDiffered
from crashproof.testing import KilledRun, run_and_kill

STEPS = 24
SETTINGS = [
    "data.max_length=24",
    "data.on_too_long=truncate",
    "tokenizer.vocab_size=300",
    "teacher.steps=3",
    "teacher.d_model=16",
    "teacher.num_heads=2",
    "teacher.num_layers=2",
    "student.d_model=16",
    "student.num_heads=2",
    "train.batch_size=2",
    "train.gradient_accumulation=3",
    f"train.steps={STEPS}",
    "train.warmup_steps=4",
    "progress.checkpoint_interval=5",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

CHANGED_PROGRAM = """
import sys
from crashproof.distillation.recipes import kd
from crashproof.distillation.command import main
forward = kd.KdRecipe.forward
def changed(self, batch):
    return {name: value * 1.000001 for name, value in forward(self, batch).items()}
kd.KdRecipe.forward = changed
sys.exit(main("kd", sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 samples: 24 steps of 6 are nearly four epochs, whose ends lie inside steps."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [{"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))} for number in range(37)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(data: Path, output_dir: Path, *, program: list[str] | None = None) -> list[str]:
    start = program or ["-m", "training.distill_kd"]
    return [sys.executable, *start, f"data.path={data}", *SETTINGS, "--output-dir", str(output_dir)]


def run_to_the_end(data: Path, output_dir: Path) -> None:
    subprocess.run(command(data, output_dir), check=True, env=ENVIRONMENT, capture_output=True)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    run_to_the_end(data, output_dir)
    return output_dir


def kill_at(data: Path, output_dir: Path, step: int, **more: Any) -> KilledRun:
    """Kill it as soon as a step is journalled; how far into the next one that is, is up to the machine."""
    metrics = output_dir / "progress" / "metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    resumed_from = max((int(path.stem.split("_")[1]) for path in output_dir.glob("checkpoint_*.pt")), default=0)
    wanted = before + step - resumed_from

    def has_come() -> bool:
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= wanted

    program = more.pop("program", None)
    return run_and_kill(command(data, output_dir, program=program), when=has_come, environment=ENVIRONMENT, **more)


def state_at_the_end(output_dir: Path) -> dict[str, Any]:
    return torch.load(output_dir / f"checkpoint_{STEPS}.pt", weights_only=True)


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Every place where two training states are not the same bits."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [found for key in one for found in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        return [
            found
            for key, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{name}.{key}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def test_killed_three_times_it_ends_bit_for_bit_like_the_uninterrupted_run(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(2, STEPS - 1), 3))
    print(f"seed {seed}: killed after steps {moments}")

    kills = [kill_at(data, tmp_path, moment) for moment in moments]
    run_to_the_end(data, tmp_path)

    assert [-signal.SIGKILL] * 3 == [kill.return_code for kill in kills]
    assert [] == differences(state_at_the_end(uninterrupted), state_at_the_end(tmp_path))
    reader = RunReader.open(tmp_path)
    assert list(range(1, STEPS + 1)) == [line.step for line in reader.history()]
    assert [line.loss for line in RunReader.open(uninterrupted).history()] == [line.loss for line in reader.history()]
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


def test_a_changed_model_makes_the_replay_check_speak_and_sigterm_asks_to_be_started_again(
    data: Path, tmp_path: Path
) -> None:
    kill_at(data, tmp_path, 8)

    asked = kill_at(data, tmp_path, 12, program=["-c", CHANGED_PROGRAM], signal_number=signal.SIGTERM)

    assert 75 == asked.return_code
    assert "Start the same command again" in asked.output
    events = [event for event in RunReader.open(tmp_path).events() if isinstance(event, ReplayDiffered)]
    assert [6] == [event.step for event in events]
    assert "was recomputed with a different loss" in asked.output
    stopped = RunReader.open(tmp_path).session()
    assert ["crashed", "preempted"] == [attempt.how for attempt in stopped.attempts]
    assert stopped.steps_completed == stopped.last_checkpoint_step


@pytest.mark.long
def test_killed_at_many_random_moments_it_ends_like_the_uninterrupted_run(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    chance = random.Random(seed)
    for number in range(int(os.environ.get("ROUNDS", "5"))):
        output_dir = tmp_path / str(number)
        moments = sorted(chance.sample(range(1, STEPS), 4))
        print(f"seed {seed}, round {number}: killed after steps {moments}")

        for moment in moments:
            kill_at(data, output_dir, moment)
        run_to_the_end(data, output_dir)

        assert [] == differences(state_at_the_end(uninterrupted), state_at_the_end(output_dir))
