"""Two jobs with one store of answers, of which one is killed, pay for each question once between them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
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
from crashproof.testing import Fault, Faults, TeacherServer
from crashproof.testing.teacher_server import FaultTimes, request_hash


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


def test_a_killed_job_that_is_started_again_does_not_wait_for_its_own_leases(
    tmp_path: Path, store_for: Callable[[Path], SqlStoreFixture]
) -> None:
    """The leases are of a minute."""
    stores = store_for(tmp_path)
    prompts = tmp_path / "P.jsonl"
    num_unique = write_prompts(prompts, 20, random.Random(7))
    stalls = Faults(script=[Fault.STALL] * num_unique, times=FaultTimes(stall_seconds=600.0))
    with TeacherServer(faults=stalls) as server:
        job = GenerationProcess(
            prompts=prompts,
            out=tmp_path / "D.jsonl",
            base_url=server.base_url,
            options=("--store", stores.url, "--concurrency", f"{num_unique}"),
        )
        job.kill(lambda: server.counts.requests >= num_unique)
        begun_at = time.monotonic()
        job.run()
        took = time.monotonic() - begun_at

    states = Counter(state for (state,) in stores.execute("SELECT state FROM crashproof_requests"))
    print(f"killed with {num_unique} requests in flight; the second start took {took:.1f} s: {dict(states)}")
    assert {"lost": num_unique, "answered": num_unique} == states
    assert took < 40
    assert [[], []] == [job.problems(), stores.open().problems()]


def test_a_job_that_is_told_twice_to_stop_leaves_nothing_leased(
    tmp_path: Path, store_for: Callable[[Path], SqlStoreFixture]
) -> None:
    stores = store_for(tmp_path)
    prompts = tmp_path / "P.jsonl"
    write_prompts(prompts, 40, random.Random(7))
    stalls = Faults(script=[Fault.STALL] * 16, times=FaultTimes(stall_seconds=600.0))
    with TeacherServer(faults=stalls) as server:
        job = GenerationProcess(
            prompts=prompts, out=tmp_path / "D.jsonl", base_url=server.base_url, options=("--store", stores.url)
        )
        process = subprocess.Popen(job.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        while server.counts.requests < 16:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert "waiting for those in flight" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)

    assert 75 == process.returncode, said
    assert "in doubt: 16 requests" in said
    assert [("lost", 16)] == stores.execute("SELECT state, count(*) FROM crashproof_requests GROUP BY state")
