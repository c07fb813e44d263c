"""`crashproof capture-logits` and the training on its folder, killed and started again, come out bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from crashproof.checkpoints.digest import digest_of
from crashproof.cli.app import app
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.distillation.command import main
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.training.capture import CaptureSettings, capture_logits
from crashproof.pytorch.interrupts import Interrupts
from crashproof.reading.run_reader import RunReader
from crashproof.testing import FaultyDisk, KilledRun, PowerLost, run_and_kill

NUM_SHARDS = 10
STEPS = 12
SETTINGS = [
    "data.max_length=24",
    "data.on_too_long=truncate",
    "tokenizer.vocab_size=280",
    "teacher.steps=2",
    "teacher.d_model=16",
    "teacher.num_heads=2",
    "teacher.num_layers=1",
    "student.d_model=16",
    "student.num_heads=2",
    "student.num_layers=1",
    "train.batch_size=2",
    "train.gradient_accumulation=2",
    "train.warmup_steps=2",
    f"train.steps={STEPS}",
    "progress.checkpoint_interval=3",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
CRASHPROOF = [sys.executable, "-c", "from crashproof.cli import main; main()"]
TRAINER = [sys.executable, "-m", "training.distill_kd"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What is not killed runs in this process, as the others do: on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def seed() -> int:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"seed {seed}")
    return seed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [{"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=4))} for number in range(36)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def capture(data: Path, out: Path) -> list[str]:
    """Arguments; three samples make a shard."""
    config = data.with_name("config.yaml")
    config.write_text("{}")
    arguments = ["capture-logits", "--config", str(config), f"data.path={data}", *SETTINGS, "--out", str(out)]
    return [*arguments, "--shard-tokens", "36", "--batch-size", "2"]


def train(data: Path, logits: Path, output_dir: Path) -> list[str]:
    teacher = ["teacher.kind=logits", f"teacher.path={logits}", "loss.intermediate=0"]
    return [f"data.path={data}", *SETTINGS, *teacher, "--output-dir", str(output_dir)]


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)


def content_of(folder: Path) -> dict[str, str]:
    """The digest of every file, without the lock, which names a process."""
    files = digest_of(folder).files
    assert files is not None
    return {name: file.digest for name, file in files.items() if name != "cache/writer.lock"}


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "logits"
    CliRunner().invoke(app, capture(data, out), catch_exceptions=False)
    assert NUM_SHARDS == len(list(out.glob("shard-*.safetensors")))
    return out


def kill_capture(data: Path, out: Path, *, at_shard: int, signal_number: int = signal.SIGKILL) -> KilledRun:
    """Kill it as soon as a shard's file is there; whether the manifest names it already is up to the machine."""
    shard = out / f"shard-{at_shard:06d}.safetensors"
    return run_and_kill(
        [*CRASHPROOF, *capture(data, out)],
        when=shard.exists,
        signal_number=signal_number,
        environment=ENVIRONMENT,
        poll_seconds=0.0002,
    )


def test_a_capture_killed_at_random_moments_ends_byte_for_byte_like_the_uninterrupted_one(
    data: Path, uninterrupted: Path, seed: int, tmp_path: Path
) -> None:
    out = tmp_path / "logits"
    first, second = sorted(random.Random(seed).sample(range(NUM_SHARDS - 4), 2))

    killed = kill_capture(data, out, at_shard=first)
    stopped = kill_capture(data, out, at_shard=second, signal_number=signal.SIGTERM)
    run([*CRASHPROOF, *capture(data, out)])

    print(f"killed at shard {first}: {killed.return_code}; stopped at shard {second}: {stopped.return_code}")
    assert killed.was_killed
    # A shard takes a few milliseconds; a slow machine may ask it to stop when it has ended.
    assert stopped.return_code in (0, 75)
    assert content_of(uninterrupted) == content_of(out)


def state_at_the_end(output_dir: Path) -> dict[str, Any]:
    return torch.load(output_dir / f"checkpoint_{STEPS}.pt", weights_only=True)


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Every place where two training states are not the same bits."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [found for key in one for found in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for key, pair in pairs for found in differences(*pair, f"{name}.{key}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def test_training_on_captured_logits_killed_on_its_way_ends_like_the_uninterrupted_run(
    data: Path, uninterrupted: Path, seed: int, tmp_path: Path
) -> None:
    reference, broken = tmp_path / "reference", tmp_path / "broken"
    metrics = broken / "progress" / "metrics.jsonl"
    moment = random.Random(seed).randrange(2, STEPS)
    assert 0 == main("kd", train(data, uninterrupted, reference))

    killed = run_and_kill(
        [*TRAINER, *train(data, uninterrupted, broken)],
        when=lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= moment,
        environment=ENVIRONMENT,
    )
    run([*TRAINER, *train(data, uninterrupted, broken)])

    print(f"killed after step {moment}: {killed.return_code}")
    assert killed.was_killed
    assert [] == differences(state_at_the_end(reference), state_at_the_end(broken))
    reader = RunReader.open(broken)
    assert [line.loss for line in RunReader.open(reference).history()] == [line.loss for line in reader.history()]
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


def capture_here(data: Path, out: Path, disk: Disk = REAL_DISK) -> None:
    """Two shards, in this process."""
    config = load_config(KdConfig, [], [f"data.path={data}", *SETTINGS, "train.device=cpu"])
    settings = CaptureSettings(top_k=4, temperature=2.0, shard_tokens=220, batch_size=8)
    capture_logits(config, settings, out, interrupts=Interrupts(), disk=disk)


def test_whichever_operation_on_the_disk_is_the_last_it_ends_the_same(data: Path, tmp_path: Path) -> None:
    """Its process dies there, and whatever it wrote is `kept`; or the power goes, and what was not synced with it."""
    reference = tmp_path / "reference"
    capture_here(data, reference)
    expected = content_of(reference)
    number, has_ended, different = 0, False, []

    while not has_ended:
        folder = tmp_path / str(number)
        # What is cached is older work: it is there completely, or not at all.
        shutil.copytree(reference / "cache", folder / "out" / "cache")
        disk = FaultyDisk(folder / "out", folder / "scratch", fails_at=number)
        try:
            capture_here(data, folder / "out", disk)
            has_ended = True
        except PowerLost:
            number += 1
        for world in ("strict", "kept"):
            disk.after_power_loss(folder / world, world, seed=number)
            capture_here(data, folder / world)
            different += [f"{world} {number}: {name}" for name in unequal(expected, content_of(folder / world))]
        shutil.rmtree(folder)

    print(f"the power went off at each of {number} operations")
    assert number > 30
    assert [] == different


def unequal(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
