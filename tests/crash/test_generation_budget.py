"""No kill and no interleaving makes `crashproof generate` spend more than its budget, by the teacher's own count."""

from __future__ import annotations

import json
import os
import random
from decimal import Decimal
from pathlib import Path

import pytest
from crash.generation_job import GenerationProcess, faults, seed_of_the_day, settled, write_prompts

from crashproof.testing import TeacherServer

BUDGET = Decimal("1.00")
PRICES = (Decimal(20), Decimal(10), Decimal(120))
"""Dollars per million tokens: about $0.004 an answer, and at most $0.012."""
TABLE = """
as_of: 2026-01-01
models: {teacher: {input: 20, cached_input: 10, output: 120, batch_share: 0.5}}
"""


def prove(folder: Path, seed: int, *, num_prompts: int = 250) -> None:
    """The third of the shows that the teacher's issue asks for."""
    chance = random.Random(seed)
    folder.mkdir(exist_ok=True)
    prompts, prices = folder / "P.jsonl", folder / "prices.yaml"
    num_unique = write_prompts(prompts, num_prompts, chance)
    prices.write_text(TABLE)
    options = ("--prices", str(prices), "--max-tokens", "40", "--concurrency", "32", "--attempts", "12")
    with TeacherServer(faults=faults(seed), prices=PRICES, latency_seconds=0.005) as server:
        job = GenerationProcess(
            prompts=prompts,
            out=folder / "D.jsonl",
            base_url=server.base_url,
            options=(*options, "--budget", str(BUDGET)),
        )
        for _ in range(4):
            wanted = server.counts.requests + chance.randint(1, 80)
            killed = job.kill(lambda wanted=wanted: server.counts.requests >= wanted)
            counts, left = settled(server), job.left()
            print(
                f"killed ({killed.return_code}) at request {counts.requests}: ${counts.dollars} charged, "
                f"${left.spending.spent} booked, ${left.most_dollars} at most"
            )
            assert counts.dollars <= left.most_dollars <= BUDGET
        said = job.run(exit_code=3)
        counts, left = settled(server), job.left()
        print(f"the end: ${counts.dollars} charged, ${left.most_dollars} at most. {said}")
        assert counts.dollars <= left.most_dollars <= BUDGET
        check_split(job, num_prompts)
        num_kept = len(list(job.kept()))

        raised = GenerationProcess(
            prompts=prompts, out=job.out, base_url=server.base_url, options=(*options, "--budget", "100")
        )
        raised.run()
        counts, left = settled(server), job.left()
        print(f"with another budget: ${counts.dollars} charged, {num_kept} answers before, {num_unique} now")
        assert counts.dollars <= left.most_dollars
    assert num_kept < num_unique == len({record.prompt_hash for record in job.kept()})
    assert num_prompts == len(job.out.read_bytes().splitlines())
    assert not job.failed.exists()
    assert [] == job.problems()


def check_split(job: GenerationProcess, num_prompts: int) -> None:
    """Every prompt is either in the output, in order, or in the list of those that failed."""
    answered = [json.loads(line)["id"] for line in job.out.read_bytes().splitlines()]
    failed = [json.loads(line) for line in job.failed.read_bytes().splitlines()]
    assert sorted(answered) == answered
    assert list(range(num_prompts)) == sorted([*answered, *(line["id"] for line in failed)])
    assert all("The budget of $1.00 does not allow a request" in line["reason"] for line in failed)


def test_a_budget_holds_through_kills_and_faults_and_can_be_raised_afterwards(tmp_path: Path) -> None:
    prove(tmp_path, seed_of_the_day())


@pytest.mark.long
def test_a_budget_holds_for_many_seeds(tmp_path: Path) -> None:
    chance = random.Random(seed_of_the_day())
    for number in range(int(os.environ.get("ROUNDS", "10"))):
        seed = chance.randrange(10**6)
        print(f"round {number}, its seed {seed}")
        prove(tmp_path / str(number), seed)
