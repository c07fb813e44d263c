"""Run a generation job: ask, keep, write."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from response_stores import SqliteFixture

from crashproof.answers.store import ResponseStore
from crashproof.errors import ConfigError, CrashproofError, StoreUnavailable, TeacherRefused
from crashproof.reading.run_reader import RunReader
from crashproof.records.requests import Spending
from crashproof.rules.spending import spending_of
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.jobs.engine import Engine, EngineResult, TeacherSettings
from crashproof.teacher.jobs.generation import JobResult, run_job
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.local_engine import LocalEngine
from crashproof.testing import Fault, Faults, TeacherServer
from crashproof.testing.teacher_server.http_stub import Connection, HttpThread, Request
from crashproof.testing.teacher_server.questions import error_response

TABLE = "as_of: 2026-01-01\nmodels: {teacher: {input: 0.15, cached_input: 0.075, output: 0.60}}\n"


class Watcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, Spending]] = []

    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        self.told.append((done, num_questions, spending))


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer() as server:
        yield server


@pytest.fixture
def make_job(tmp_path: Path, server: TeacherServer) -> Callable[..., GenerationJob]:
    def make(num_prompts: int = 3, *, base_url: str = server.base_url) -> GenerationJob:
        path = tmp_path / "P.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(num_prompts)))
        form = RequestForm(base_url=base_url, model="teacher", parameters={"max_tokens": 40})
        return GenerationJob(prompts=path, out=tmp_path / "D.jsonl", form=form)

    return make


@pytest.fixture
def prices(tmp_path: Path) -> PriceTable:
    path = tmp_path / "prices.yaml"
    path.write_text(TABLE)
    return PriceTable.load(path)


def run(
    job: GenerationJob,
    prices: PriceTable,
    *,
    progress: Watcher | None = None,
    shared_store: Callable[[str], ResponseStore] | None = None,
    **given: Any,
) -> JobResult:
    limits = Limits(concurrency=given.pop("concurrency", 4))
    retry_policy = RetryPolicy(attempts=given.pop("attempts", 3), first_wait_seconds=0.01)
    endpoint = Endpoint(base_url=job.form.base_url)
    settings = TeacherSettings(endpoint=endpoint, prices=prices, limits=limits, retry_policy=retry_policy, **given)
    return run_job(
        job,
        lambda on_failure: LocalEngine(settings=settings, on_failure=on_failure),
        progress=progress or Watcher(),
        shared_store=shared_store,
    )


def test_whoever_watches_hears_the_end_and_the_run_knows_it_too(
    make_job: Callable[..., GenerationJob], prices: PriceTable, server: TeacherServer
) -> None:
    job, watcher = make_job(), Watcher()

    result = run(job, prices, progress=watcher)

    assert (0, 3, Spending()) == watcher.told[0]
    assert (3, 3, result.spending) == watcher.told[-1]
    assert server.counts.dollars == result.spending.spent
    session = RunReader(job.folder).session()
    assert (3, 3) == (session.steps_completed, session.total_steps_target)
    assert spending_of(session) == result.spending
    assert ["completed"] == [attempt.how for attempt in session.attempts]


def test_no_more_are_under_way_than_allowed(
    make_job: Callable[..., GenerationJob], prices: PriceTable, server: TeacherServer
) -> None:
    run(make_job(60), prices, concurrency=5)

    assert server.counts.most_at_once <= 5


def test_a_job_can_run_in_any_thread(make_job: Callable[..., GenerationJob], prices: PriceTable) -> None:
    results: list[JobResult] = []
    thread = threading.Thread(target=lambda: results.append(run(make_job(), prices)))

    thread.start()
    thread.join()

    (written,) = [result.written for result in results]
    assert written is not None
    assert 3 == written.num_answers


def test_an_attempt_that_ends_in_an_error_says_so(make_job: Callable[..., GenerationJob], prices: PriceTable) -> None:
    job = make_job()

    with pytest.raises(ConfigError, match=r"budget must be above 0"):
        run(job, prices, budget=Decimal(0))

    (attempt,) = RunReader(job.folder).session().attempts
    assert ("raised", True) == (attempt.how, "budget must be above 0" in str(attempt.error))


def test_somebody_who_watches_and_fails_stops_the_job(
    make_job: Callable[..., GenerationJob], prices: PriceTable, server: TeacherServer
) -> None:
    class Nervous(LocalEngine):
        def ask_all(
            self,
            job: GenerationJob,
            store: ResponseStore,
            *,
            reasons: MutableMapping[str, str],
            on_end: Callable[[int], None],
        ) -> EngineResult:
            def fail(done: int) -> None:
                raise RuntimeError("no more")

            return super().ask_all(job, store, reasons=reasons, on_end=fail)

    settings = TeacherSettings(
        endpoint=Endpoint(base_url=server.base_url), prices=prices, limits=Limits(concurrency=1)
    )

    with pytest.raises(RuntimeError, match="no more"):
        run_job(
            make_job(50), lambda on_failure: Nervous(settings=settings, on_failure=on_failure), progress=Watcher()
        )

    assert server.counts.requests < 50


@pytest.mark.parametrize("status", [301, 307, 401, 402, 404, 405])
def test_a_refusal_that_no_other_prompt_would_escape_ends_the_job_at_once(
    make_job: Callable[..., GenerationJob], prices: PriceTable, status: int
) -> None:
    num_asked = 0

    async def refuse(request: Request, connection: Connection) -> None:
        nonlocal num_asked
        num_asked += 1
        await connection.send(error_response(status, "Not here."))

    thread = HttpThread(refuse, lambda error: error_response(error.status, str(error)), port=0)
    try:
        job = make_job(20, base_url=f"http://127.0.0.1:{thread.port}/v1")
        with pytest.raises(TeacherRefused, match=f"HTTP {status}: Not here"):
            run(job, prices, concurrency=1)
    finally:
        thread.close()

    assert 1 == num_asked
    assert not job.out.exists()


def test_what_is_forbidden_to_one_prompt_stops_the_others_only_where_it_is_forbidden_to_all(
    make_job: Callable[..., GenerationJob], prices: PriceTable
) -> None:
    """A key that may do nothing, or a prompt that nobody may ask: both are HTTP 403."""
    num_asked = 0

    async def refuse(request: Request, connection: Connection) -> None:
        nonlocal num_asked
        num_asked += 1
        await connection.send(error_response(403, "Not allowed."))

    thread = HttpThread(refuse, lambda error: error_response(error.status, str(error)), port=0)
    try:
        job = make_job(20, base_url=f"http://127.0.0.1:{thread.port}/v1")
        with pytest.raises(TeacherRefused, match="HTTP 403: Not allowed"):
            run(job, prices, concurrency=1)
    finally:
        thread.close()

    assert 4 == num_asked


def test_a_question_that_never_gets_through_does_not_stop_the_others(
    make_job: Callable[..., GenerationJob], prices: PriceTable
) -> None:
    def answer(body: dict[str, Any]) -> str:
        if body["messages"][0]["content"] == "Question 7":
            raise ValueError("too hard")
        return "It is."

    with TeacherServer(answer) as failing:
        result = run(make_job(20, base_url=failing.base_url), prices, concurrency=1, attempts=2)

    assert result.written is not None
    assert (19, 1) == (result.written.num_answers, result.written.num_failed)
    (reason,) = result.asked.reasons.values()
    assert "no response after 2 attempts" in reason


def test_failed_requests_stand_in_the_run(make_job: Callable[..., GenerationJob], prices: PriceTable) -> None:
    with TeacherServer(faults=Faults(script=[Fault.SERVER_ERROR, Fault.DROP_AFTER])) as failing:
        job = make_job(1, base_url=failing.base_url)
        run(job, prices)

    session = RunReader(job.folder).session()
    assert (2, 2, 1) == (session.connection_failures, session.connection_retries, session.api_requests_in_doubt)


def test_a_shared_stores_account_stands_in_the_run(
    make_job: Callable[..., GenerationJob], prices: PriceTable, server: TeacherServer, tmp_path: Path
) -> None:
    stores = SqliteFixture(tmp_path / "shared")
    job = make_job()

    result = run(job, prices, shared_store=lambda account: stores.open(account=account))

    stores.close()
    session = RunReader(job.folder).session()
    assert server.counts.dollars == result.spending.spent == session.api_cost
    assert (3, 0) == (session.api_responses_saved, (job.folder.answers).stat().st_size)


def test_a_shared_store_that_cannot_be_opened_leaves_nothing_sent(
    make_job: Callable[..., GenerationJob], prices: PriceTable, server: TeacherServer
) -> None:
    def refuse(account: str) -> ResponseStore:
        raise StoreUnavailable("sqlite:///…", reason="it is away")

    with pytest.raises(CrashproofError, match="it is away"):
        run(make_job(), prices, shared_store=refuse)

    assert 0 == server.counts.requests


def test_an_engine_that_stops_writes_no_output(make_job: Callable[..., GenerationJob]) -> None:
    class Stopped:
        def ask_all(
            self,
            job: GenerationJob,
            store: ResponseStore,
            *,
            reasons: MutableMapping[str, str],
            on_end: Callable[[int], None],
        ) -> EngineResult:
            on_end(1)
            return EngineResult(is_stopped=True)

    job = make_job()
    engine: Engine = Stopped()

    result = run_job(job, lambda _: engine, progress=Watcher())

    assert (None, False) == (result.written, job.out.exists())
    session = RunReader(job.folder).session()
    assert ("preempted", 1) == (session.attempts[0].how, session.steps_completed)
