"""`crashproof generate`, killed again and again before a teacher that fails, pays for each question once."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash.generation_job import GenerationProcess, faults, hashes_of, seed_of_the_day, settled, write_prompts

from crashproof.testing import TeacherServer

Moment = tuple[str, Callable[[], bool]]


def moment_for(job: GenerationProcess, server: TeacherServer, chance: random.Random, *, most: int) -> Moment:
    """A request, an answer, a line of a journal, or some time from now, as chance has it."""
    kind = chance.choice(["request", "answer", "api_requests.jsonl", "api_recovery.jsonl", "second"])
    if kind == "second":
        moment = time.monotonic() + chance.uniform(0.3, 2.0)
        return "some time", lambda: time.monotonic() >= moment
    journal = job.run_folder / "progress" / kind
    count: Callable[[], int] = {
        "request": lambda: server.counts.requests,
        "answer": lambda: server.counts.answers_delivered,
    }.get(kind, lambda: journal.read_bytes().count(b"\n") if journal.exists() else 0)
    wanted = count() + chance.randint(1, most)
    return f"{kind} {wanted}", lambda: count() >= wanted


def prove(folder: Path, seed: int, *, num_prompts: int, options: tuple[str, ...] = ()) -> None:
    """The first of the shows that the teacher's issue asks for."""
    chance = random.Random(seed)
    folder.mkdir(exist_ok=True)
    prompts = folder / "P.jsonl"
    num_unique = write_prompts(prompts, num_prompts, chance)
    with TeacherServer(latency_seconds=0.005) as calm:
        unbroken = GenerationProcess(prompts=prompts, out=folder / "unbroken.jsonl", base_url=calm.base_url)
        unbroken.run()
    assert num_unique == calm.counts.answers_computed

    with TeacherServer(faults=faults(seed), latency_seconds=0.005) as server:
        job = GenerationProcess(
            prompts=prompts, out=folder / "D.jsonl", base_url=server.base_url, options=("--attempts", "12", *options)
        )
        kept_once: dict[str, int] = {}
        for _ in range(5):
            name, when = moment_for(job, server, chance, most=num_unique // 4)
            killed = job.kill(when)
            counts, left = settled(server), job.left()
            kept = hashes_of(job.kept())
            print(
                f"killed at {name} ({killed.return_code}): {counts.requests} requests, {counts.answers_computed} "
                f"answers computed, {left.spending.answers} kept, {left.num_in_doubt} in doubt"
            )
            assert counts.answers_computed <= left.spending.answers + left.num_in_doubt
            assert len(kept) == left.spending.answers
            for each in kept:
                assert counts.by_prompt[each] == kept_once.setdefault(each, counts.by_prompt[each])
        said = job.run()
        counts, left = settled(server), job.left()

    keys = [record.prompt_hash for record in job.kept()]
    print(
        f"{num_prompts} prompts, {num_unique} unique: {len(keys)} answers kept, {counts.answers_computed} computed "
        f"in {counts.requests} requests, {left.num_in_doubt} in doubt; {sum(counts.faults.values())} faults of "
        f"{len(counts.faults)} kinds"
    )
    print(said)
    assert num_unique == len(keys) == len(set(keys)) == left.spending.answers
    assert counts.answers_computed <= num_unique + left.num_in_doubt
    assert {each: counts.by_prompt[each] for each in kept_once} == kept_once
    assert unbroken.out.read_bytes() == job.out.read_bytes()
    assert num_prompts == len(job.out.read_bytes().splitlines())
    assert not job.failed.exists()
    assert [] == job.problems()


def test_a_job_killed_five_times_before_a_failing_teacher_ends_like_the_unbroken_one(tmp_path: Path) -> None:
    prove(tmp_path, seed_of_the_day(), num_prompts=500)


@pytest.mark.long
def test_many_jobs_killed_five_times_each_end_like_the_unbroken_ones(tmp_path: Path) -> None:
    chance = random.Random(seed_of_the_day())
    for number in range(int(os.environ.get("ROUNDS", "10"))):
        seed = chance.randrange(10**6)
        print(f"round {number}, its seed {seed}")
        prove(tmp_path / str(number), seed, num_prompts=500)
