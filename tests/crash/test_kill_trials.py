"""Frameworks and loops are killed at random moments, half of them in a save, and end as if they had not been.

`ROUNDS=n` sets how many kills each gets, `SEED=n` repeats the moments of one.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crashproof import RunReader

PROGRAM = Path(__file__).with_name("kill_trials_program.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SAVE_INTERVAL = 4
LATEST_STEP = 7
"""Of an attempt, before it is killed outside a save: within two save intervals."""
WAYS = {
    "hf": ("HF Trainer", "transformers"),
    "lightning": ("Lightning, `save_last` with `save_top_k=3`", "lightning"),
    "accelerate": ("Accelerate", "accelerate"),
    "written": ("loop, `write_atomically`, a file per save", "torch"),
    "adopted": ("loop, `torch.save`, a file per save", "torch"),
    "adopted-large": ("the same, digested in the background", "torch"),
    "last-renamed": ("loop, `last.pt` by `write_atomically`", "torch"),
    "last-in-place": ("loop, `last.pt` by `torch.save`", "torch"),
}
"""Each with its row of the table, and the package that it needs."""


@dataclass(kw_only=True)
class Tally:
    """What came of the kills of one way."""

    kills: int = 0
    in_saves: int = 0
    """Between the beginning of a save and its acknowledgement."""
    failed: int = 0
    """Starts that ended by themselves with another exit code than 0."""
    silent: int = 0
    """Starts at step 0 although a checkpoint had been acknowledged."""
    behind: int = 0
    """Starts before the newest acknowledged step."""
    most_lost: int = 0
    """Steps done in one attempt and not found by the next."""
    runs: int = 0
    identical: int = 0
    """Runs whose weights and losses are those of the uninterrupted one, bit for bit."""

    def row(self, name: str) -> str:
        return (
            f"| {name} | {self.kills} | {self.in_saves} | {self.failed} | {self.silent} | {self.behind} "
            f"| {self.most_lost} | {self.identical} of {self.runs} |"
        )


COLUMNS = (
    *("saved by", "kills", "in a save", "failed resumes", "silent starts from 0", "behind the newest acknowledged"),
    *(f"most steps lost (a save every {SAVE_INTERVAL})", "runs that ended bit for bit"),
)


@dataclass(kw_only=True)
class Attempt:
    """One start of the command, as its own words tell it."""

    started: int | None = None
    last_step: int = 0
    acknowledged: int = 0
    is_saving: bool = False
    return_code: int = 0
    was_killed: bool = False

    def hear(self, line: str) -> None:
        word, _, number = line.partition(" ")
        step = int(number) if number.strip().isdecimal() else 0
        if word == "started":
            self.started = self.last_step = step
        elif word == "step":
            self.last_step = step
        elif word in ("saving", "acknowledged"):
            self.is_saving = word == "saving"
            self.acknowledged = step if word == "acknowledged" else self.acknowledged


class Trials:
    """Runs of one way, one after the other, each killed again and again until it ends."""

    def __init__(self, way: str, folder: Path, chance: random.Random) -> None:
        self.way = way
        self.folder = folder
        self.chance = chance
        self.tally = Tally()
        self.seconds_per_save = 0.02
        """As seen last: a kill is aimed at any moment within it."""

    def run(self, num_kills: int) -> Tally:
        """Kill so often; the last run of all is left alone then, until it ends."""
        reference = self.folder / "uninterrupted"
        assert self.attempt(reference, is_spared=True).return_code == 0
        while self.tally.kills < num_kills:
            output_dir = self.folder / f"run_{self.tally.runs}"
            is_complete = self.train(output_dir, num_kills)
            self.tally.runs += 1
            self.tally.identical += is_complete and outcome(output_dir) == outcome(reference)
        return self.tally

    def train(self, output_dir: Path, num_kills: int) -> bool:
        """Start the command until it ends by itself; whether it says that it succeeded."""
        acknowledged = done = 0
        while True:
            attempt = self.attempt(output_dir, is_spared=self.tally.kills >= num_kills)
            self.tally.kills += attempt.was_killed
            self.tally.in_saves += attempt.was_killed and attempt.is_saving
            if attempt.started is not None:
                self.tally.silent += attempt.started == 0 and acknowledged > 0
                self.tally.behind += attempt.started < acknowledged
                self.tally.most_lost = max(self.tally.most_lost, done - attempt.started)
                done = attempt.last_step
            acknowledged = max(acknowledged, attempt.acknowledged)
            if not attempt.was_killed:
                self.tally.failed += attempt.return_code != 0
                return attempt.return_code == 0

    def attempt(self, output_dir: Path, *, is_spared: bool) -> Attempt:
        """Start the command, and kill it at a moment of chance."""
        output_dir.mkdir(exist_ok=True)
        attempt = Attempt()
        with (output_dir / "stderr.txt").open("a") as complaints:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), self.way, str(output_dir)],
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env=ENVIRONMENT,
            )
        assert process.stdout is not None
        with process, process.stdout as lines:
            try:
                if not is_spared and self.is_time_to_kill(lines, attempt):
                    process.kill()
                for line in lines:
                    attempt.hear(line)
            except BaseException:
                process.kill()
                raise
        attempt.return_code = process.returncode
        attempt.was_killed = process.returncode < 0
        return attempt

    def is_time_to_kill(self, lines: Iterator[str], attempt: Attempt) -> bool:
        """Follow the program to a moment; False if it ended before."""
        is_aimed_at_a_save = self.tally.in_saves * 2 <= self.tally.kills
        num_left = self.chance.randint(1, 2) if is_aimed_at_a_save else self.chance.randint(0, LATEST_STEP)
        save_began = 0.0
        for line in lines:
            attempt.hear(line)
            now = time.monotonic()
            if line.startswith("saving"):
                save_began = now
            elif line.startswith("acknowledged"):
                self.seconds_per_save = now - save_began
            num_left -= line.startswith("saving" if is_aimed_at_a_save else "step")
            if num_left <= 0 and (line.startswith("saving") or not is_aimed_at_a_save):
                time.sleep(self.chance.uniform(0.0, self.seconds_per_save))
                return True
        return False


def outcome(output_dir: Path) -> tuple[bytes, list[tuple[int, str]], list[str]]:
    """The weights, the loss of each step, and what the run itself finds wrong with its files."""
    reader = RunReader.open(output_dir)
    losses = [(line.step, repr(line.loss)) for line in reader.history()]
    return (output_dir / "weights.pt").read_bytes(), losses, reader.problems()


def try_kills(way: str, folder: Path, num_kills: int) -> Tally:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    pytest.importorskip(WAYS[way][1])
    print(f"\nseed {seed}")
    return Trials(way, folder, random.Random(seed)).run(num_kills)


def require_kept(tally: Tally) -> None:
    assert (0, 0, 0) == (tally.failed, tally.silent, tally.behind)
    assert tally.most_lost <= SAVE_INTERVAL
    assert tally.runs == tally.identical


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    """The table, printed once all have been tried."""
    found: list[str] = []
    yield found
    print("\n| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    print("\n".join(found))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_random_it_resumes_and_ends_bit_for_bit(way: str, tmp_path: Path, rows: list[str]) -> None:
    tally = try_kills(way, tmp_path, int(os.environ.get("ROUNDS", "30")))
    rows.append(tally.row(WAYS[way][0]))
    print(rows[-1])

    require_kept(tally)
    assert tally.in_saves * 3 >= tally.kills, "too few kills fell into a save"


def test_killed_twice_a_loop_whose_digests_are_under_way_resumes_and_ends_bit_for_bit(tmp_path: Path) -> None:
    require_kept(try_kills("adopted-large", tmp_path, 2))
