"""Several processes, one killed in a step or in a save: the resumed run ends like the uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crashproof import RunReader
from crashproof.checkpoints.verify import problem_with

STEPS = 12
NUM_SAMPLES = 48
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
    "train.batch_size=4",
    "train.limit_seconds=20",
    "train.warmup_steps=4",
    "progress.checkpoint_interval=4",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}

PROGRAM = Path(__file__).with_name("ranks_program.py")
"""The trainer itself, which can end one rank at one moment, and writes down which samples were learned from."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps of 4 are exactly one epoch of 48."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [
        {"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))}
        for number in range(NUM_SAMPLES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def train(
    data: Path,
    output_dir: Path,
    *overrides: str,
    num_ranks: int = 2,
    kill: str = "",
    restarts: int = 0,
    mark: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Start the trainer on so many ranks; `kill` is `rank:step:moment`, at which `mark` is made."""
    start = (
        [sys.executable, str(PROGRAM)]
        if num_ranks == 1
        else [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)),
            *("--max-restarts", str(restarts), "--master-port", "0", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", "localhost:0", str(PROGRAM)),
        ]
    )
    environment = {
        **ENVIRONMENT,
        "RANKS_KILL": kill,
        "RANKS_START": uuid.uuid4().hex,
        "RANKS_SAMPLES": str(output_dir.with_suffix(".samples")),
        **({} if mark is None else {"RANKS_MARK": str(mark)}),
    }
    arguments = [f"data.path={data}", *SETTINGS, f"train.steps={STEPS}", *overrides, "--output-dir", str(output_dir)]
    return subprocess.run(
        [*start, *arguments], env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def weights_at_the_end(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [] == [name for name in one if not torch.equal(one[name], other[name])]


def samples_by_step(output_dir: Path) -> dict[int, list[int]]:
    """Of each step as it was computed last, the samples of all ranks."""
    samples: dict[int, dict[str, list[int]]] = {}
    for line in output_dir.with_suffix(".samples").read_text().splitlines():
        report = json.loads(line)
        samples.setdefault(report["step"], {}).setdefault(report["start"], []).extend(report["samples"])
    return {step: list(by_start.values())[-1] for step, by_start in samples.items()}


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def uninterrupted(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    output_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = train(data, output_dir, f"train.strategy={request.param}")
    assert 0 == ended.returncode, ended.stderr
    return request.param, output_dir


@pytest.mark.parametrize(
    "uninterrupted, moment",
    [
        pytest.param("ddp", "step", marks=pytest.mark.long),
        pytest.param("ddp", "save", marks=pytest.mark.long),
        pytest.param("fsdp", "step", marks=pytest.mark.long),
        pytest.param("fsdp", "save"),
    ],
    indirect=["uninterrupted"],
)
def test_a_run_with_one_killed_rank_ends_like_the_uninterrupted_one(
    data: Path, uninterrupted: tuple[str, Path], tmp_path: Path, moment: str
) -> None:
    strategy, reference = uninterrupted
    output_dir = tmp_path / "run"
    # The save at 8 waits for that at 4; whether it is through by the step after it is up to the machine.
    step = 8 if moment == "save" else 9

    killed = train(data, output_dir, f"train.strategy={strategy}", kill=f"1:{step}:{moment}")
    left = RunReader.open(output_dir)
    offered = [each.checkpoint_step for each in left.session().checkpoints.values()]
    resumed = train(data, output_dir, f"train.strategy={strategy}")

    assert 0 != killed.returncode
    # No half checkpoint is ever offered.
    assert offered in ([[4]] if moment == "save" else [[4], [4, 8]])
    assert {None} == {problem_with(each, left.folder) for each in left.session().checkpoints.values()}
    assert 0 == resumed.returncode, resumed.stderr
    assert f"Resuming at step {offered[-1]} (checkpoint_{offered[-1]}," in resumed.stderr
    assert_same(weights_at_the_end(reference), weights_at_the_end(output_dir))
    reader = RunReader.open(output_dir)
    assert [line.loss for line in RunReader.open(reference).history()] == [line.loss for line in reader.history()]
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


@pytest.mark.parametrize(
    "uninterrupted, num_ranks",
    [
        pytest.param("ddp", 1, marks=pytest.mark.long),
        pytest.param("ddp", 4, marks=pytest.mark.long),
        pytest.param("fsdp", 1),
        pytest.param("fsdp", 4, marks=pytest.mark.long),
    ],
    indirect=["uninterrupted"],
)
def test_another_number_of_ranks_reads_exactly_the_samples_that_are_left(
    data: Path, uninterrupted: tuple[str, Path], tmp_path: Path, num_ranks: int
) -> None:
    strategy, reference = uninterrupted
    output_dir = tmp_path / "run"

    begun = train(data, output_dir, f"train.strategy={strategy}", "train.steps=6", "train.schedule_steps=12")
    resumed = train(data, output_dir, f"train.strategy={strategy}", "train.schedule_steps=12", num_ranks=num_ranks)

    assert (0, 0) == (begun.returncode, resumed.returncode), resumed.stderr
    consumed = samples_by_step(output_dir)
    print(f"{strategy}, 2 ranks then {num_ranks}: {consumed}")
    assert list(range(1, STEPS + 1)) == sorted(consumed)
    assert list(range(NUM_SAMPLES)) == sorted(index for indices in consumed.values() for index in indices)
    for name, weight in weights_at_the_end(reference).items():
        # The same numbers, added up in another order.
        torch.testing.assert_close(weights_at_the_end(output_dir)[name], weight, rtol=1e-3, atol=1e-4)
    assert [] == RunReader.open(output_dir).problems()


@pytest.mark.long
def test_torchrun_restarts_a_killed_rank_by_itself(
    data: Path, uninterrupted: tuple[str, Path], tmp_path: Path
) -> None:
    strategy, reference = uninterrupted
    output_dir = tmp_path / "run"

    ended = train(data, output_dir, f"train.strategy={strategy}", kill="0:6:step", restarts=1)

    assert 0 == ended.returncode, ended.stderr
    assert_same(weights_at_the_end(reference), weights_at_the_end(output_dir))
    assert 2 == len(RunReader.open(output_dir).session().attempts)


@pytest.mark.long
def test_three_ranks_add_up_in_one_order_however_often_they_start(data: Path, tmp_path: Path) -> None:
    reference, broken = tmp_path / "reference", tmp_path / "broken"
    settings = ("train.batch_size=6", "train.steps=8")

    ended = train(data, reference, *settings, num_ranks=3)
    train(data, broken, *settings, num_ranks=3, kill="2:6:step")
    resumed = train(data, broken, *settings, num_ranks=3)

    assert (0, 0) == (ended.returncode, resumed.returncode), resumed.stderr
    assert [line.loss for line in RunReader.open(reference).history()] == [
        line.loss for line in RunReader.open(broken).history()
    ]


@pytest.mark.long
def test_all_ranks_stop_at_one_step_when_one_is_asked_to(data: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"

    asked = train(data, output_dir, kill="1:5:asked")
    session = RunReader.open(output_dir).session()
    resumed = train(data, output_dir)

    assert 0 != asked.returncode
    assert session.steps_completed == session.last_checkpoint_step
    assert 5 <= session.steps_completed < STEPS
    assert ["preempted"] == [attempt.how for attempt in session.attempts]
    assert 0 == resumed.returncode, resumed.stderr
    assert [*range(1, STEPS + 1)] == [line.step for line in RunReader.open(output_dir).history()]


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("moment", ["8:hang", "9:stopped"], ids=["save", "step"])
def test_a_rank_that_is_stopped_is_named_and_torchrun_does_not_wait_for_it(
    data: Path, tmp_path: Path, strategy: str, moment: str
) -> None:
    output_dir, mark = tmp_path / "run", tmp_path / "mark"

    stopped = train(
        data, output_dir, "train.limit_seconds=5", f"train.strategy={strategy}", kill=f"1:{moment}", mark=mark
    )

    seconds = time.time() - mark.stat().st_mtime
    print(f"\n{strategy}, rank 1 stopped at {moment} (limit 5 s): torchrun ended after {seconds:.1f} s")
    # torchrun's own patience with a process that does not end is 30 s, after the limit and the roll call.
    assert seconds < 35
    assert 0 != stopped.returncode
    assert re.search(r"Lost rank 1 \(.*, pid \d+\) while .* \(limit 5 s\): stopped \(state T\)", stopped.stderr)
    assert re.search(r"Rank 1 \(.*\) is stopped \(state T\) for .* it is ended with SIGKILL", stopped.stderr)
    offered = [each.checkpoint_step for each in RunReader.open(output_dir).session().checkpoints.values()]
    assert offered in ([[4]] if moment == "8:hang" else [[4], [4, 8]])


@pytest.mark.parametrize("uninterrupted", [pytest.param("ddp", marks=pytest.mark.long), "fsdp"], indirect=True)
def test_off_the_main_rank_nothing_is_written_but_shards(data: Path, uninterrupted: tuple[str, Path]) -> None:
    _, output_dir = uninterrupted

    reader = RunReader.open(output_dir)
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "rank_0.pt", "rank_1.pt", "state.pt"} == {
        path.name for path in (output_dir / "checkpoint_4").iterdir()
    }
    assert 1 == len(reader.session().attempts)
    manifest = reader.session().checkpoints[4]
    assert manifest.files is not None
    assert {path.name for path in (output_dir / "checkpoint_4").iterdir()} == manifest.files.keys()


@pytest.mark.long
def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(data: Path, tmp_path: Path) -> None:
    refused = train(data, tmp_path / "run", num_ranks=3)

    assert 0 != refused.returncode
    assert "train.batch_size is 4, and 3 processes cannot share that evenly" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_signal_is_what_ends_a_killed_rank() -> None:
    """The program of these tests really kills: nothing else than SIGKILL would end it so."""
    environment = {**ENVIRONMENT, "RANKS_KILL": "0:0:now"}

    ended = subprocess.run([sys.executable, str(PROGRAM)], env=environment, capture_output=True, check=False)

    assert -signal.SIGKILL == ended.returncode
