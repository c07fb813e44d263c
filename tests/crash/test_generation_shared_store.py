"""Two jobs with one store of answers, of which one is killed, pay for each question once between them."""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from crash.generation_job import GenerationProcess, faults, seed_of_the_day, settled, write_prompts
from postgres import PostgresServer, postgres_server
from response_stores import PostgresFixture, SqliteFixture, SqlStoreFixture

from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.testing import TeacherServer
from crashproof.testing.teacher_server import request_hash


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_for(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], SqlStoreFixture]]:
    """Makes a store for the jobs of a folder."""

    def make(folder: Path) -> SqlStoreFixture:
        is_file = request.param == "sqlite"
        stores = SqliteFixture(folder / "store") if is_file else PostgresFixture(request.getfixturevalue("postgres"))
        fixtures.callback(stores.close)
        return stores

    with ExitStack() as fixtures:
        yield make


def prove(folder: Path, stores: SqlStoreFixture, seed: int, *, num_prompts: int = 200) -> None:
    """The second of the shows that the teacher's issue asks for."""
    chance = random.Random(seed)
    prompts = folder / "P.jsonl"
    num_unique = write_prompts(prompts, num_prompts, chance)
    with TeacherServer(faults=faults(seed), latency_seconds=0.02) as server:
        one, other = (
            GenerationProcess(
                prompts=prompts,
                out=folder / name,
                base_url=server.base_url,
                options=("--store", stores.url, "--attempts", "12", "--concurrency", "8"),
            )
            for name in ("A.jsonl", "B.jsonl")
        )
        undisturbed = subprocess.Popen(one.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        kills = []
        for _ in range(2):
            wanted = server.counts.requests + chance.randint(1, num_unique // 2)
            kills.append(other.kill(lambda wanted=wanted: server.counts.requests >= wanted).return_code)
            forget_killed(stores, undisturbed.pid)
        said = other.run()
        said_by_one, _ = undisturbed.communicate(timeout=120)
        assert 0 == undisturbed.returncode, said_by_one
        counts = settled(server)

    job = GenerationJob(prompts=prompts, out=one.out, form=RequestForm(base_url=server.base_url, model="teacher"))
    hashes = {question.request.key: request_hash(question.request.body) for question in job.questions()}
    states = Counter(state for (state,) in stores.execute("SELECT state FROM crashproof_requests"))
    in_doubt = Counter(key for (key,) in stores.execute("SELECT key FROM crashproof_requests WHERE state = 'lost'"))
    ((num_kept,),) = stores.execute("SELECT count(*) FROM crashproof_answers")
    print(
        f"killed: {kills}; {num_unique} unique prompts, {num_kept} answers kept, {counts.answers_computed} computed "
        f"in {counts.requests} requests; requests in the store: {dict(states)}\n{said_by_one}{said}"
    )
    assert num_unique == num_kept == states["answered"]
    for key, name in hashes.items():
        assert counts.by_prompt[name] <= 1 + in_doubt[key]
    assert one.out.read_bytes() == other.out.read_bytes()
    assert num_prompts == len(one.out.read_bytes().splitlines())
    assert [[], [], []] == [one.problems(), other.problems(), stores.open().problems()]


def forget_killed(stores: SqlStoreFixture, living: int) -> None:
    """A minute passes for whoever was killed: their leases run out."""
    stores.execute(
        f"UPDATE crashproof_requests SET lease_until = lease_until - 120 WHERE state = 'open' "
        f"AND holder NOT LIKE '%:{living}'"
    )


def test_two_jobs_with_one_store_pay_once_though_one_is_killed(
    tmp_path: Path, store_for: Callable[[Path], SqlStoreFixture]
) -> None:
    prove(tmp_path, store_for(tmp_path), seed_of_the_day())


@pytest.mark.long
def test_two_jobs_with_one_store_pay_once_for_many_seeds(
    tmp_path: Path, store_for: Callable[[Path], SqlStoreFixture]
) -> None:
    chance = random.Random(seed_of_the_day())
    for number in range(int(os.environ.get("ROUNDS", "10"))):
        seed, folder = chance.randrange(10**6), tmp_path / str(number)
        print(f"round {number}, its seed {seed}")
        folder.mkdir()
        prove(folder, store_for(folder), seed)
