"""`crashproof generate` as a process of its own, what a kill leaves of it, and what its teacher counted."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from crashproof import RunReader
from crashproof.disk.journal import Line, scan
from crashproof.errors import NotARun
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.spending import spending_of
from crashproof.testing import Fault, Faults, KilledRun, TeacherServer, run_and_kill
from crashproof.testing.teacher_server import FaultTimes, TeacherCounts, request_hash

EVERY_KIND = tuple(kind for kind in Fault if not kind.spoils_answer and not kind.is_lasting and not kind.leaves_part)
"""Save the one whose answers are kept, marked and not asked for again."""
_answer_decoder = msgspec.json.Decoder(AnswerRecord)
_TIMES = FaultTimes(retry_after_seconds=1, stall_seconds=0.4, slow_body_seconds=0.1)


def seed_of_the_day() -> int:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"seed {seed}")
    return seed


def faults(seed: int, *, share: float = 0.3, kinds: tuple[Fault, ...] = EVERY_KIND) -> Faults:
    return Faults(seed=seed, share=share, kinds=kinds, times=_TIMES)


def write_prompts(path: Path, count: int, chance: random.Random) -> int:
    """A fifth of them repeat another one, some in its other spelling; says how many differ."""
    num_unique = count - count // 5
    texts = [f"What does sailor {number} say about {chance.randrange(1000)}?" for number in range(num_unique)]
    asked = [*texts, *chance.choices(texts, k=count - num_unique)]
    chance.shuffle(asked)
    with path.open("w") as file:
        for number, text in enumerate(asked):
            as_messages = {"messages": [{"role": "user", "content": text}]}
            line = as_messages if chance.random() < 0.3 else {"prompt": text}
            file.write(json.dumps(line | {"id": number}) + "\n")
    return num_unique


@dataclass(frozen=True, kw_only=True)
class GenerationProcess:
    """One job, which can be started as often as it was killed."""

    prompts: Path
    out: Path
    base_url: str
    options: tuple[str, ...] = ()

    @property
    def run_folder(self) -> Path:
        return self.out.with_suffix(".run")

    @property
    def failed(self) -> Path:
        return self.out.with_suffix(".failed.jsonl")

    def command(self, *more: str) -> list[str]:
        start = [sys.executable, "-c", "from crashproof.cli import main; main()", "generate"]
        given = ["--prompts", str(self.prompts), "--model", "teacher", "--out", str(self.out)]
        return [*start, *given, "--base-url", self.base_url, *self.options, *more]

    def run(self, *more: str, exit_code: int = 0) -> str:
        """To its end; returns what it said."""
        done = subprocess.run(
            self.command(*more), check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert exit_code == done.returncode, done.stdout
        return done.stdout

    def kill(self, when: Callable[[], bool], **how: Any) -> KilledRun:
        return run_and_kill(self.command(), when=when, **how)

    def left(self) -> LeftByAKill:
        return left_in(self.run_folder)

    def kept(self) -> Iterator[AnswerRecord]:
        """Every answer of the journal, in order."""
        for piece in scan(self.run_folder / "progress" / "api_recovery.jsonl"):
            if isinstance(piece, Line):
                yield _answer_decoder.decode(piece.content)

    def problems(self) -> list[str]:
        return RunReader.open(self.run_folder).problems()


@dataclass(frozen=True, kw_only=True)
class LeftByAKill:
    """The accounts as the journals have them."""

    spending: Spending
    num_in_doubt: int

    @property
    def most_dollars(self) -> Decimal:
        return self.spending.committed


def left_in(run_folder: Path) -> LeftByAKill:
    """What the journals of a run say that nobody writes now."""
    try:
        session = RunReader.open(run_folder).session()
    except NotARun:
        return LeftByAKill(spending=Spending(), num_in_doubt=0)
    # Requests without an end that the newest attempt began are in doubt too, since it is dead.
    num_in_doubt = session.api_requests_in_doubt + len(session.api_requests_open)
    return LeftByAKill(spending=spending_of(session), num_in_doubt=num_in_doubt)


def settled(server: TeacherServer) -> TeacherCounts:
    """The counts once the server has dealt with what a killed client has sent."""
    counts = server.counts
    while True:
        time.sleep(0.05)
        later = server.counts
        if (later.requests, later.answers_computed) == (counts.requests, counts.answers_computed):
            return later
        counts = later


def hashes_of(records: Iterator[AnswerRecord]) -> set[str]:
    """The server's names of the requests that have an answer."""
    return {request_hash(record.request["body"]) for record in records if isinstance(record.request, dict)}
