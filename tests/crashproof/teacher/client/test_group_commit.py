from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from teaching import request_for

from crashproof.answers.store import Granted, Intent, Lost, Outcome, Verdict
from crashproof.errors import DiskFull, RunClosed, StorageError, StoreUnavailable, TeacherClosed
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.group_commit import GroupCommit
from crashproof.testing import PowerLost


class FakeStore:
    """Counts its calls; holds them up, or fails, where a test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.budgets: set[Decimal | None] = set()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_called = threading.Event()
        self.errors: dict[str, list[BaseException]] = {}
        self.threads: set[int] = set()
        self.stored: dict[str, AnswerRecord] = {}
        self.lacking: set[str] = set()

    def serve(self, key: str) -> AnswerRecord | None:
        raise NotImplementedError

    def read(self, key: str) -> AnswerRecord | None:
        raise NotImplementedError

    def serve_all(self, keys: Sequence[str]) -> list[AnswerRecord | None]:
        self._note("serve", len(keys))
        return [self.stored.get(key) for key in keys]

    def read_all(self, keys: Sequence[str]) -> Iterator[AnswerRecord | None]:
        raise NotImplementedError

    def lacks(self, key: str) -> bool:
        return key in self.lacking

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        self.budgets.add(budget)
        self._note("begin", len(intents))
        return [Granted(request_id=each.request.key, request=each.request, most=each.most) for each in intents]

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        self._note("finish", len(outcomes))

    def mark(self, key: str, problem: str) -> None:
        self._note("mark", 1)

    def why_miss(self, request: TeacherRequest) -> str:
        raise NotImplementedError

    def spending(self) -> Spending:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _note(self, name: str, count: int) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append((name, count))
        self.is_called.set()
        assert self.may_go_on.wait(30)
        if self.errors.get(name):
            raise self.errors[name].pop(0)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def intent(number: int) -> Intent:
    return Intent(request=request_for(number), most=Decimal("0.01"))


def lost(number: int) -> Lost:
    granted = Granted(request_id=str(number), request=request_for(number), most=Decimal("0.01"))
    return Lost(granted=granted, reason="it broke")


def using(
    store: FakeStore, work: Callable[[GroupCommit], Coroutine[Any, Any, Any]], **how: Any
) -> tuple[Any, list[float]]:
    """What comes of some work, and the seconds that were waited for the disk."""
    slept: list[float] = []
    commits = GroupCommit(store, **({"budget": None, "sleep": slept.append} | how))
    try:
        return asyncio.run(work(commits)), slept
    finally:
        store.may_go_on.set()
        commits.close()


async def all_behind_the_first(store: FakeStore, asked: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Ask one thing; while the store works on it, all others; then let it go on."""
    store.may_go_on.clear()
    tasks = [asyncio.create_task(asked[0])]
    await asyncio.to_thread(store.is_called.wait)
    tasks += [asyncio.create_task(each) for each in asked[1:]]
    await asyncio.sleep(0)
    store.may_go_on.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    "kind, asked",
    [
        pytest.param("begin", lambda commits, number: commits.begin(intent(number)), id="begin"),
        pytest.param("finish", lambda commits, number: commits.finish(lost(number)), id="finish"),
    ],
)
def test_all_who_come_while_the_store_works_share_its_next_call(store, kind, asked):
    async def work(commits: GroupCommit) -> None:
        await all_behind_the_first(store, [asked(commits, number) for number in range(30)])

    using(store, work)
    assert [(kind, 1), (kind, 29)] == store.calls


def test_each_is_given_its_own_verdict(store):
    async def work(commits: GroupCommit) -> list[Verdict]:
        return await all_behind_the_first(store, [commits.begin(intent(number)) for number in range(10)])

    verdicts, _ = using(store, work)
    assert [request_for(number).key for number in range(10)] == [each.request_id for each in verdicts]


def test_no_more_than_256_share_a_call(store):
    async def work(commits: GroupCommit) -> None:
        await all_behind_the_first(store, [commits.begin(intent(number)) for number in range(600)])

    using(store, work)
    assert [1, 256, 256, 87] == [count for _, count in store.calls]


def test_ends_come_before_beginnings(store):
    """They are paid for, and free money for the next."""

    async def work(commits: GroupCommit) -> None:
        asked = [commits.serve("first"), commits.begin(intent(1)), commits.serve("a"), commits.mark("m", "bad")]
        await all_behind_the_first(store, [*asked, commits.finish(lost(2))])

    using(store, work)
    assert ["serve", "finish", "mark", "serve", "begin"] == [name for name, _ in store.calls]


def test_lists_of_keys_share_a_call_and_each_gets_its_own_answers(store):
    fields = {"timestamp": 0.0, "session_id": "s", "attempt": 1, "cost": Decimal(0), "response": {}}
    store.stored = {key: AnswerRecord(prompt_hash=key, **fields) for key in "abc"}

    async def work(commits: GroupCommit) -> list[Any]:
        asked = [commits.serve_all(["a", "x"]), commits.serve_all([]), commits.serve("b"), commits.serve_all(["c"])]
        return await all_behind_the_first(store, asked)

    (pair, nothing, one, last), _ = using(store, work)
    assert [("serve", 2), ("serve", 2)] == store.calls
    assert ["a", None] == [each and each.prompt_hash for each in pair]
    assert ([], "b", ["c"]) == (list(nothing), one.prompt_hash, [each.prompt_hash for each in last])


def test_the_budget_is_handed_on(store):
    using(store, lambda commits: commits.begin(intent(1)), budget=Decimal("0.5"))

    assert {Decimal("0.5")} == store.budgets


def test_the_store_is_called_from_one_thread_that_is_not_the_loops(store):
    async def work(commits: GroupCommit) -> None:
        await asyncio.gather(*(commits.serve(str(number)) for number in range(20)))

    using(store, work)
    assert 1 == len(store.threads)
    assert threading.get_ident() not in store.threads


@pytest.mark.parametrize(
    "error", [DiskFull(Path("x")), StoreUnavailable("x", reason="gone"), ValueError("own")], ids=repr
)
def test_a_store_that_refuses_to_begin_is_heard_by_all_who_asked(store, error):
    store.errors["begin"] = [error]

    async def work(commits: GroupCommit) -> tuple[list[Any], Verdict]:
        refused = await asyncio.gather(
            *(commits.begin(intent(number)) for number in range(3)), return_exceptions=True
        )
        return refused, await commits.begin(intent(9))

    (refused, later), slept = using(store, work)
    assert error in refused
    assert all(each is error or isinstance(each, Granted) for each in refused)
    assert (request_for(9).key, []) == (later.request_id, slept)


def test_the_end_of_all_things_is_heard_by_who_asked_and_not_by_a_thread_alone(store):
    store.errors["begin"] = [PowerLost()]

    async def work(commits: GroupCommit) -> Verdict:
        with pytest.raises(PowerLost):
            await asyncio.wait_for(commits.begin(intent(1)), timeout=10)
        return await asyncio.wait_for(commits.begin(intent(2)), timeout=10)

    verdict, _ = using(store, work)
    assert isinstance(verdict, Granted)


def test_an_error_of_one_kind_does_not_touch_another(store):
    store.errors["serve"] = [ValueError("rotten")]

    async def work(commits: GroupCommit) -> list[Any]:
        return await asyncio.gather(commits.serve("a"), commits.begin(intent(1)), return_exceptions=True)

    (served, begun), _ = using(store, work)
    assert isinstance(served, ValueError)
    assert isinstance(begun, Granted)


def full(times: int) -> list[BaseException]:
    return [StorageError("The disk is full.") for _ in range(times)]


def test_an_end_waits_while_the_disk_is_full_and_is_kept_then(store, caplog):
    store.errors["finish"] = full(5)

    _, slept = using(store, lambda commits: commits.finish(lost(1)))
    assert ([1.0] * 5, 6) == (slept, len(store.calls))
    assert ["1 request outcomes wait in memory until they can be stored: The disk is full."] == caplog.messages


@pytest.mark.parametrize("seconds, pause", [(120.0, 1.0), (5.0, 0.5), (0.0, None)])
def test_an_end_that_has_waited_long_enough_is_raised(store, seconds, pause):
    store.errors["finish"] = full(1000)

    async def work(commits: GroupCommit) -> None:
        with pytest.raises(StorageError, match="full"):
            await commits.finish(lost(1))

    _, slept = using(store, work, full_disk_seconds=seconds)
    assert [pause] * (len(store.calls) - 1) == slept
    assert pytest.approx(seconds) == sum(slept)


@pytest.mark.parametrize("error", [OSError("broken"), RunClosed(Path("x"), why="is closed")], ids=repr)
def test_what_no_waiting_helps_against_is_raised_at_once(store, error):
    store.errors["finish"] = [error]

    async def work(commits: GroupCommit) -> None:
        with pytest.raises(type(error)):
            await commits.finish(lost(1))

    _, slept = using(store, work)
    assert [] == slept


def test_whoever_is_cancelled_gets_nothing_and_the_others_do(store):
    async def work(commits: GroupCommit) -> Verdict:
        store.may_go_on.clear()
        asked = [asyncio.create_task(commits.begin(intent(number))) for number in range(3)]
        await asyncio.to_thread(store.is_called.wait)
        asked[1].cancel()
        await asyncio.sleep(0)
        store.may_go_on.set()
        await asyncio.gather(*asked, return_exceptions=True)
        assert asked[1].cancelled()
        return [asked[0].result().request_id, asked[2].result().request_id]

    found, _ = using(store, work)
    assert [request_for(0).key, request_for(2).key] == found


def test_closing_does_what_is_left(store):
    async def work(commits: GroupCommit) -> list[Any]:
        store.may_go_on.clear()
        asked = [asyncio.create_task(commits.begin(intent(number))) for number in range(5)]
        await asyncio.to_thread(store.is_called.wait)
        closing = asyncio.get_running_loop().run_in_executor(None, commits.close)
        store.may_go_on.set()
        await closing
        return await asyncio.gather(*asked)

    verdicts, _ = using(store, work)
    assert 5 == len(verdicts)


def test_whoever_asks_after_the_end_is_told_so(store):
    async def work(commits: GroupCommit) -> None:
        commits.close()
        for asked in (
            commits.serve("a"),
            commits.begin(intent(1)),
            commits.finish(lost(1)),
            commits.mark("a", "bad"),
        ):
            with pytest.raises(TeacherClosed):
                await asyncio.wait_for(asked, timeout=10)

    using(store, work)
    assert [] == store.calls


def test_many_who_ask_while_it_is_closed_are_all_answered_or_told(store):
    async def work(commits: GroupCommit) -> list[Any]:
        asked = [asyncio.create_task(commits.serve(str(number))) for number in range(50)]
        closing = asyncio.get_running_loop().run_in_executor(None, commits.close)
        for number in range(200):
            asked.append(asyncio.create_task(commits.serve(str(number))))
            await asyncio.sleep(0)
        await closing
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), timeout=10)

    found, _ = using(store, work)
    assert all(each is None or isinstance(each, TeacherClosed) for each in found)


def test_closing_twice_does_nothing(store):
    commits = GroupCommit(store, budget=None)
    commits.close()
    commits.close()

    assert [] == store.calls


def test_a_key_that_the_store_is_known_to_lack_is_not_looked_up(store):
    store.lacking = {"new"}

    async def work(commits: GroupCommit) -> list[AnswerRecord | None]:
        return [await commits.serve("new"), await commits.serve("asked")]

    assert [None, None] == using(store, work)[0]
    assert [("serve", 1)] == store.calls
