"""Runs on two ranks, one killed at random again and again, end like the uninterrupted one.

`ROUNDS=n` sets how many kills each gets, `SEED=n` repeats the moments of one.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crashproof import RunReader

PROGRAM = Path(__file__).with_name("rank_kills_program.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
NUM_SAMPLES = 48
SETTINGS = [
    *("data.max_length=24", "data.on_too_long=truncate", "tokenizer.vocab_size=300", "teacher.steps=3"),
    *("teacher.d_model=16", "teacher.num_heads=2", "teacher.num_layers=2", "student.d_model=16"),
    *("student.num_heads=2", "train.batch_size=4", "train.warmup_steps=4", "train.limit_seconds=20"),
    *("progress.checkpoint_interval=4", "progress.eval_every=6", "progress.eval_samples=2"),
]
KINDS = {
    "DDP": (["train.strategy=ddp"], 1),
    "FSDP2": (["train.strategy=fsdp"], 1),
    "FSDP2, LoRA, accumulation": (
        [
            *("train.strategy=fsdp", "train.gradient_accumulation=2", "student.lora.rank=4"),
            *("student.lora.dropout=0.1", "loss.intermediate=0"),
        ],
        2,
    ),
}
"""Each with what it sets, and its passes for a step."""
MOST_STEPS_FOR_A_KILL = 10
"""An attempt that is killed gets hardly further than this behind the checkpoint that it began with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Where a rank dies."""

    rank: int
    moment: str
    number: int = 1
    """It dies when it comes to the moment for the so-manieth time since it was started."""
    seconds: float
    """After it has come to it."""

    def __str__(self) -> str:
        return f"{self.rank}:{self.moment}:{self.number}:{self.seconds:.4f}"


def random_kill(chance: random.Random) -> Kill:
    moment = chance.choice(["step", "step", "save", "evaluation", "start"])
    if moment == "start":
        where = chance.choice(["join", "prepare", "restore"])
        return Kill(rank=chance.randrange(2), moment=where, seconds=chance.uniform(0, 0.2))
    number = chance.randint(1, 10) if moment == "step" else 1
    return Kill(rank=chance.randrange(2), moment=moment, number=number, seconds=chance.uniform(0, 0.02))


@dataclass(kw_only=True)
class Campaign:
    """One run, started and killed again and again."""

    kind: str
    data: Path
    output_dir: Path
    steps: int
    killed: Counter[str] = field(default_factory=Counter)
    """By moment."""
    missed: int = 0
    """Attempts that did not come to the moment, such as a restore where there is no checkpoint."""

    @property
    def mark(self) -> Path:
        return self.output_dir.with_suffix(".mark")

    @property
    def samples(self) -> Path:
        return self.output_dir.with_suffix(".samples")

    def start(self, kill: Kill | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command until it ends."""
        agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        meeting = ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        arguments = [f"data.path={self.data}", f"data.eval_path={self.data}", *SETTINGS, *KINDS[self.kind][0]]
        arguments += [f"train.steps={self.steps}", "--output-dir", str(self.output_dir)]
        return subprocess.run(
            [*agent, *meeting, str(PROGRAM), *arguments],
            env={
                **ENVIRONMENT,
                "KILL": str(kill or ""),
                "KILL_MARK": str(self.mark),
                "SAMPLES": str(self.samples),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def kill(self, kill: Kill) -> None:
        """Start the command, and have one rank killed."""
        began_at = time.monotonic()
        ended = self.start(kill)
        was_killed = self.mark.exists()
        self.mark.unlink(missing_ok=True)
        how = "killed" if was_killed else "missed"
        print(f"  {kill}: {how} after {time.monotonic() - began_at:.0f} s, {self.where()}")
        # A run that is over comes to no more steps.
        assert was_killed or ended.returncode == 0, ended.stderr
        self.killed[kill.moment] += was_killed
        self.missed += not was_killed

    def where(self) -> str:
        if not (self.output_dir / "progress").is_dir():
            return "nothing is written yet"
        session = RunReader.open(self.output_dir).session()
        return f"step {session.steps_completed}, newest checkpoint {session.last_checkpoint_step}"

    def is_complete(self) -> bool:
        return (self.output_dir / f"student_{self.steps}").exists()

    def samples_by_step(self) -> dict[tuple[int, str], list[int]]:
        """Of each step and rank, what was learned from; each time the same."""
        found: dict[tuple[int, str], list[int]] = {}
        for line in self.samples.read_text().splitlines():
            report = json.loads(line)
            place = (report["step"], report["rank"])
            assert report["samples"] == found.setdefault(place, report["samples"])
        return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [
        {"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))}
        for number in range(NUM_SAMPLES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def assert_ended_alike(reference: Campaign, campaign: Campaign) -> None:
    for path in sorted(reference.output_dir.glob(f"student_{reference.steps}/*.safetensors")):
        expected, found = load_file(path), load_file(campaign.output_dir / path.relative_to(reference.output_dir))
        assert expected.keys() == found.keys()
        assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    expected_run, run = RunReader.open(reference.output_dir), RunReader.open(campaign.output_dir)
    assert losses(expected_run) == losses(run)
    assert results(expected_run) == results(run)
    assert None is run.session().replay_differed_at
    assert [] == run.problems()
    assert_learned_from_all(reference, campaign)


def losses(run: RunReader) -> list[tuple[int, float]]:
    return [(line.step, line.loss) for line in run.history()]


def results(run: RunReader) -> dict[int, dict[str, float]]:
    """Of each step's newest evaluation."""
    return {each.step: each.results for each in run.session().evaluations}


def assert_learned_from_all(reference: Campaign, campaign: Campaign) -> None:
    samples = campaign.samples_by_step()
    times = Counter(index for indices in samples.values() for index in indices)
    passes = 4 * KINDS[campaign.kind][1] * campaign.steps // NUM_SAMPLES

    assert reference.samples_by_step() == samples
    assert dict.fromkeys(range(NUM_SAMPLES), passes) == dict(times)


def try_kills(kind: str, data: Path, folder: Path, num_kills: int) -> Campaign:
    """Kill so often, then let the run end."""
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"\n{kind}, seed {seed}")
    chance = random.Random(seed)
    # Enough for all kills, and a whole number of epochs.
    steps = 12 * max(1, num_kills * MOST_STEPS_FOR_A_KILL // 12 + 1)
    reference = Campaign(kind=kind, data=data, output_dir=folder / "uninterrupted", steps=steps)
    campaign = Campaign(kind=kind, data=data, output_dir=folder / "killed", steps=steps)
    ended = reference.start()
    assert 0 == ended.returncode, ended.stderr
    while campaign.killed.total() < num_kills and not campaign.is_complete():
        campaign.kill(random_kill(chance))
    ended = campaign.start()
    assert 0 == ended.returncode, ended.stderr
    assert_ended_alike(reference, campaign)
    return campaign


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    """The table, printed once all have been tried."""
    found: list[str] = []
    yield found
    print("\n| ranks | kills | in a step | in a save | in an evaluation | at the start | ended bit for bit |")
    print("|---|---|---|---|---|---|---|\n" + "\n".join(found))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_killed_at_random_end_bit_for_bit(kind: str, data: Path, tmp_path: Path, rows: list[str]) -> None:
    num_kills = int(os.environ.get("ROUNDS", "12"))

    campaign = try_kills(kind, data, tmp_path, num_kills)

    killed = campaign.killed
    at_start = killed["join"] + killed["prepare"] + killed["restore"]
    counts = [killed.total(), killed["step"], killed["save"], killed["evaluation"], at_start]
    rows.append(f"| {kind} | {' | '.join(map(str, counts))} | yes |")
    assert num_kills == killed.total()
