"""A job asks from a cluster whose machines come, go, break and lie."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeActor, FakeCluster

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError, DataError, StoreUnavailable, TeacherRefused, TeacherUnreachable
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.ray_cluster.asker import Opened, version_here
from crashproof.teacher.jobs.ray_cluster.messages import ClusterTask, Progress
from crashproof.teacher.jobs.ray_cluster.pass_over import ask_all
from crashproof.teacher.jobs.ray_cluster.store_file import StoreFile
from crashproof.teacher.jobs.stop_signals import StopSignals
from crashproof.teacher.shared_store.store import SharedStore
from crashproof.testing import Fault, Faults, TeacherServer
from crashproof.testing.teacher_server import FaultTimes

ACCOUNT = "run_of_the_test"


@dataclass(kw_only=True)
class Pass:
    """One pass of a job over its questions, and what it told."""

    folder: Path
    base_url: str
    num_prompts: int = 60
    settings: dict[str, Any] = field(default_factory=dict)
    cluster: FakeCluster = field(default_factory=lambda: FakeCluster("north", "south"))
    told: list[Progress] = field(default_factory=list)
    clock: Clock = SYSTEM_CLOCK

    @property
    def store_url(self) -> str:
        return f"sqlite:///{self.folder}/answers.db"

    @property
    def reasons(self) -> dict[str, str]:
        return {key: why for progress in self.told for key, why in progress.reasons.items()}

    @property
    def num_finished(self) -> int:
        return self.told[-1].num_finished if self.told else 0

    def task(self) -> ClusterTask:
        prompts = self.folder / "P.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(self.num_prompts)))
        given = {"limits": Limits(concurrency=8), "retry_policy": RetryPolicy(attempts=3, first_wait_seconds=0.02)}
        return ClusterTask(
            job=GenerationJob(
                prompts=prompts,
                out=self.folder / "D.jsonl",
                form=RequestForm(base_url=self.base_url, model="teacher", parameters={}),
            ),
            settings=TeacherSettings(
                endpoint=Endpoint(base_url=self.base_url), prices=PriceTable.load(), **(given | self.settings)
            ),
            store_url=self.store_url,
            account=ACCOUNT,
        )

    def run(self, meanwhile: Callable[[StopSignals], Awaitable[None]] | None = None) -> EngineResult:
        """Ask; `meanwhile` runs beside it."""
        return asyncio.run(self._run(meanwhile))

    async def _run(self, meanwhile: Callable[[StopSignals], Awaitable[None]] | None) -> EngineResult:
        SharedStore.open(self.store_url, account=ACCOUNT).close()
        orders = StopSignals()
        asking = asyncio.create_task(
            ask_all(self.task(), self.cluster, orders, tell=self.told.append, clock=self.clock)
        )
        if meanwhile is not None:
            await meanwhile(orders)
        return await asyncio.wait_for(asking, 60)

    def num_stored(self) -> int:
        with SharedStore.open(self.store_url, account=ACCOUNT) as store:
            assert [] == store.problems()
            return store.spending().answers

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_true():
                await asyncio.sleep(0.005)


class Hurried:
    """Thirty times as fast as the clock of the machine."""

    now = staticmethod(SYSTEM_CLOCK.now)

    def steady(self) -> float:
        return 30 * SYSTEM_CLOCK.steady()


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer(latency_seconds=0.02) as server:
        yield server


@pytest.fixture
def slow_server() -> Iterator[TeacherServer]:
    """Slow enough for what takes a look at the cluster to happen in the middle of a job."""
    with TeacherServer(latency_seconds=0.1) as server:
        yield server


def test_all_machines_ask_and_each_question_is_paid_once(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url)

    asked = one.run()

    assert (False, {}) == (asked.is_stopped, one.reasons)
    assert 60 == one.num_finished == one.num_stored() == server.counts.answers_computed
    assert {"north": 1, "south": 1} == one.cluster.num_started
    assert all(actor.calls["close"] == 1 for actor in one.cluster.all)
    assert not one.cluster.is_joined


def test_progress_counts_answers_and_not_calls(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url)

    one.run()

    numbers = [progress.num_finished for progress in one.told]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 4


def test_equal_prompts_count_each_and_are_paid_once(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, num_prompts=10)
    task = one.task()
    task.job.prompts.write_text(task.job.prompts.read_text() * 4)
    one.task = lambda: task  # type: ignore[method-assign]

    one.run()

    assert (40, 10) == (one.num_finished, server.counts.answers_computed)


def test_a_machine_that_joins_later_asks_too(tmp_path: Path, slow_server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=slow_server.base_url, num_prompts=200, cluster=FakeCluster("north"))

    async def join(_: StopSignals) -> None:
        await one.until(lambda: one.num_finished >= 20)
        one.cluster.names.append("south")

    one.run(join)

    south = one.cluster.all[1]
    assert {"north": 1, "south": 1} == one.cluster.num_started
    assert south.calls["exchange"] > 1
    assert 200 == slow_server.counts.answers_computed
    # Both had half of the limits, in the end all of them.
    limits = [[sent[1][0].concurrency for sent in actor.sent if sent[0] == "limit"] for actor in one.cluster.all]
    assert [8, 4] == limits[0][:2]
    assert 4 == limits[1][0]


def test_the_questions_of_a_lost_machine_are_asked_by_others(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, num_prompts=150)

    async def kill(_: StopSignals) -> None:
        await one.until(lambda: one.num_finished >= 40)
        one.cluster.kill_machine("south")

    one.run(kill)

    assert {} == one.reasons
    # The lost one is alive and out of reach: what it had in flight it stores, and nobody asks that again.
    assert 150 == one.num_finished == one.num_stored() == server.counts.answers_computed


def test_an_asker_that_died_is_replaced(
    tmp_path: Path, server: TeacherServer, caplog: pytest.LogCaptureFixture
) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, num_prompts=200, cluster=FakeCluster("north"))

    async def kill(_: StopSignals) -> None:
        await one.until(lambda: one.num_finished >= 20)
        one.cluster.all[0].kill()

    one.run(kill)

    assert {"north": 2} == one.cluster.num_started
    assert 200 == one.num_finished == one.num_stored()
    (said,) = caplog.messages
    assert said.startswith("Lost the asker on north: its process died. Its ")
    assert said.endswith(" open questions are asked by others.")


def test_machines_on_which_every_asker_dies_are_left_alone(
    tmp_path: Path, server: TeacherServer, caplog: pytest.LogCaptureFixture
) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url)

    async def kill(_: StopSignals) -> None:
        while sum(one.cluster.num_started.values()) < 6 or one.cluster.alive:
            for actor in list(one.cluster.alive.values()):
                actor.kill()
            await asyncio.sleep(0)

    with pytest.raises(
        ConfigError,
        match=r"No machine of the Ray cluster \(2\) can run an asker: its process died\.",
    ):
        one.run(kill)

    assert {"north": 3, "south": 3} == one.cluster.num_started
    assert 2 == sum("That machine is left alone now." in said for said in caplog.messages)


def test_a_call_whose_connection_breaks_is_made_again_and_obeyed_once(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url)

    async def break_calls(_: StopSignals) -> None:
        for wanted in (5, 25):
            await one.until(lambda wanted=wanted: one.num_finished >= wanted)
            for actor in one.cluster.all:
                actor.num_broken_calls = 1

    one.run(break_calls)

    assert {"north": 1, "south": 1} == one.cluster.num_started
    assert 60 == one.num_finished == one.num_stored() == server.counts.answers_computed


def test_asked_to_stop_it_waits_for_what_is_in_flight(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, num_prompts=400)

    async def stop(orders: StopSignals) -> None:
        await one.until(lambda: one.num_finished >= 40)
        orders.stop.set()

    asked = one.run(stop)

    with SharedStore.open(one.store_url, account=ACCOUNT) as store:
        spending = store.spending()
    assert asked.is_stopped
    assert 40 <= one.num_finished == spending.answers == server.counts.answers_computed < 400
    assert (0, 0) == (spending.requests_in_doubt, spending.reserved)


def test_asked_twice_it_gives_up_what_is_in_flight(tmp_path: Path) -> None:
    stalls = Faults(script=[Fault.STALL] * 8, times=FaultTimes(stall_seconds=600.0))
    with TeacherServer(faults=stalls) as server:
        one = Pass(folder=tmp_path, base_url=server.base_url)

        async def stop_twice(orders: StopSignals) -> None:
            await one.until(lambda: server.counts.requests >= 8)
            orders.stop.set()
            await asyncio.sleep(0.1)
            orders.give_up.set()

        asked = one.run(stop_twice)

    with SharedStore.open(one.store_url, account=ACCOUNT) as store:
        spending = store.spending()
    assert asked.is_stopped
    assert (0, 8) == (spending.answers, spending.requests_in_doubt)


def test_stopped_before_any_asker_is_ready_nothing_is_asked(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url)
    one.cluster.num_free_cpus = 0.0

    async def stop(orders: StopSignals) -> None:
        await one.until(lambda: len(one.cluster.all) == 2)
        orders.stop.set()

    asked = one.run(stop)

    assert (True, 0) == (asked.is_stopped, server.counts.requests)
    assert all(actor.is_dead for actor in one.cluster.all)


def test_a_refused_connection_ends_the_job_with_the_error_of_one_machine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    one = Pass(folder=tmp_path, base_url=f"http://127.0.0.1:{port}/v1", num_prompts=200)

    with pytest.raises(TeacherUnreachable, match=r"no response after 3 attempts over .* no connection to http"):
        one.run()

    failures = [failure for progress in one.told for failure in progress.failures]
    assert 8 <= len([failure for failure in failures if failure[0] == 0]) < 200


def test_a_wrong_key_ends_the_job(tmp_path: Path) -> None:
    with TeacherServer(api_key="sk-another-one") as server:
        one = Pass(folder=tmp_path, base_url=server.base_url)

        with pytest.raises(TeacherRefused, match="HTTP 401"):
            one.run()

    assert server.counts.requests <= 8


def test_a_teacher_that_goes_away_and_comes_back_answers_everything(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    one = Pass(
        folder=tmp_path,
        base_url=f"http://127.0.0.1:{port}/v1",
        num_prompts=120,
        settings={"retry_policy": RetryPolicy(attempts=6, first_wait_seconds=0.05)},
    )

    with ExitStack() as servers:
        first = servers.enter_context(ExitStack())
        first.enter_context(TeacherServer(latency_seconds=0.02, port=port))

        async def restart(_: StopSignals) -> None:
            await one.until(lambda: one.num_finished >= 40)
            await asyncio.to_thread(first.close)
            # Six attempts at a question take 1.55 s at most, and half of that on average.
            await asyncio.sleep(1.2)
            servers.enter_context(TeacherServer(latency_seconds=0.02, port=port))

        one.run(restart)

    assert {} == one.reasons
    assert 120 == one.num_finished == one.num_stored()


def test_it_says_that_no_cpu_is_free_and_goes_on_once_one_is(
    tmp_path: Path, server: TeacherServer, caplog: pytest.LogCaptureFixture
) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, clock=Hurried())
    one.cluster.num_free_cpus = 0.0

    async def free(_: StopSignals) -> None:
        await one.until(lambda: bool(caplog.messages))
        one.cluster.num_free_cpus = 1.0
        for actor in list(one.cluster.alive.values()):
            actor.kill()

    one.run(free)

    assert (
        "Nothing is asked yet: waiting for a free CPU, since all 4 of the Ray cluster are reserved by others."
        == (caplog.messages[0])
    )
    assert 60 == one.num_stored()


def test_it_says_that_there_is_no_machine(
    tmp_path: Path, server: TeacherServer, caplog: pytest.LogCaptureFixture
) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, cluster=FakeCluster(), clock=Hurried())

    async def join(_: StopSignals) -> None:
        await one.until(lambda: bool(caplog.messages))
        one.cluster.names.append("north")

    one.run(join)

    assert "Nothing is asked yet: waiting for a machine with CPUs to join the Ray cluster." == caplog.messages[0]
    assert 60 == one.num_stored()


def test_no_more_machines_ask_than_the_limits_can_be_divided_by(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(
        folder=tmp_path,
        base_url=server.base_url,
        num_prompts=20,
        settings={"limits": Limits(concurrency=2)},
        cluster=FakeCluster("east", "north", "south", "west"),
    )

    one.run()

    assert {"east": 1, "north": 1} == one.cluster.num_started


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (StoreFile(boot_id="another", device=1, inode=2), "north finds another file under its name. Use a database"),
        (None, "north finds another file under its name"),
    ],
    ids=["another file", "a server"],
)
def test_a_machine_with_another_store_is_refused(
    tmp_path: Path, server: TeacherServer, found: StoreFile | None, problem: str
) -> None:
    one = Pass(
        folder=tmp_path, base_url=server.base_url, cluster=Odd(Opened(version=version_here(), store_file=found))
    )

    with pytest.raises(ConfigError, match=problem):
        one.run()

    assert 0 == server.counts.requests


def test_a_machine_with_another_version_is_refused(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, cluster=Odd(Opened(version="0.0.1", store_file=None)))

    with pytest.raises(ConfigError, match=rf"north has crashproof 0\.0\.1, and this machine {version_here()}\."):
        one.run()


def test_a_machine_that_cannot_open_the_store_says_why(tmp_path: Path, server: TeacherServer) -> None:
    unavailable = StoreUnavailable("postgresql+psycopg://user:***@host/answers", reason="connection refused")
    one = Pass(folder=tmp_path, base_url=server.base_url, cluster=Odd(unavailable))

    with pytest.raises(StoreUnavailable, match="connection refused"):
        one.run()


class Odd(FakeCluster):
    """One machine that opens as it is told to."""

    def __init__(self, opened: object) -> None:
        super().__init__("north")
        self._opened = opened

    def start(self, *given: Any, **named: Any) -> FakeActor:
        actor = super().start(*given, **named)
        actor.results["open"] = self._opened
        return actor


def test_prompts_that_change_meanwhile_end_the_job(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, num_prompts=20_000)

    async def garble(_: StopSignals) -> None:
        await one.until(lambda: one.num_finished >= 20)
        (tmp_path / "P.jsonl").write_text("{}\n" * 20_000)

    with pytest.raises(DataError):
        one.run(garble)


def test_questions_are_read_as_they_are_wanted(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url, num_prompts=500)
    read = itertools.count()
    task = one.task()
    most_ahead = 0

    class Counted(GenerationJob):
        def questions(self) -> Iterator[Any]:
            nonlocal most_ahead
            for question in super().questions():
                most_ahead = max(most_ahead, next(read) - one.num_finished)
                yield question

    job = Counted(prompts=task.job.prompts, out=task.job.out, form=task.job.form)
    one.task = lambda: replace(task, job=job)  # type: ignore[method-assign]

    async def stop(orders: StopSignals) -> None:
        await one.until(lambda: one.num_finished >= 200)
        orders.stop.set()

    one.run(stop)

    # Four for each request that may be in flight, once more for what is on its way.
    assert 0 < most_ahead <= 2 * 4 * 8


def test_a_cluster_that_cannot_be_joined_is_told(tmp_path: Path, server: TeacherServer) -> None:
    one = Pass(folder=tmp_path, base_url=server.base_url)
    one.cluster.refusal = ConfigError("No Ray cluster is running.")

    with pytest.raises(ConfigError, match="No Ray cluster is running"):
        one.run()
