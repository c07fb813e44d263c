from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest
from teaching import EAGER, URL, FakeTransport, delivered, failed, price_table_at, request_for

from crashproof import ProgressTracker, RunReader
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import AnswerUnusable, RequestError, TeacherClosed, TeacherRefused
from crashproof.teacher import AsyncTeacher, Endpoint, Limits, PriceTable, Teacher
from crashproof.teacher.client.transport import Reply
from crashproof.testing import TeacherServer


@pytest.fixture
def tracker(open_tracker: Callable[..., ProgressTracker]) -> ProgressTracker:
    return open_tracker()


@pytest.fixture
def teacher_of(tracker, tmp_path):
    """Make a teacher for programs without a loop, over a transport or an address."""
    made: list[Teacher] = []
    prices = PriceTable.load(price_table_at(tmp_path))

    def make(transport: FakeTransport | str, **how: Any) -> Teacher:
        address = transport if isinstance(transport, str) else URL
        arguments = {
            "store": tracker.responses,
            "endpoint": Endpoint(base_url=address),
            "prices": prices,
            "retry_policy": EAGER,
            "transport": None if isinstance(transport, str) else transport,
        }
        made.append(Teacher(AsyncTeacher("teacher", **(arguments | how))))
        return made[-1]

    yield make
    for teacher in made:
        teacher.close()


def echo(request: Any) -> str:
    return request.body["messages"][0]["content"]


async def slow_echo(request: Any) -> Reply:
    await asyncio.sleep(0.005)
    return delivered(f"said {echo(request)}")


class HeldBack:
    """A reply that is on its way until another thread lets it arrive."""

    def __init__(self) -> None:
        self.is_sent = threading.Event()
        self.may_arrive = threading.Event()

    async def __call__(self, request: Any) -> Reply:
        self.is_sent.set()
        while not self.may_arrive.is_set():
            await asyncio.sleep(0.002)
        return delivered(f"said {echo(request)}")


def test_a_question_is_answered_without_a_loop(teacher_of, tracker):
    with teacher_of(FakeTransport()) as teacher:
        answer = teacher.ask("2 + 2?", temperature=0.5)

    assert "4" == answer.text
    assert request_for(temperature=0.5).key == answer.key
    assert 1 == tracker.responses.spending().answers


def test_many_questions_are_asked_at_once_and_answered_in_their_order(teacher_of):
    transport = FakeTransport(otherwise=slow_echo)
    with teacher_of(transport, limits=Limits(concurrency=5)) as teacher:
        texts = [answer.text for answer in teacher.ask_all((f"{number}" for number in range(20)), temperature=0)]

    assert [f"said {number}" for number in range(20)] == texts
    assert 5 == transport.most_at_once


def test_many_threads_share_one_teacher_and_equal_questions_one_request(teacher_of, tracker, run_dir):
    found: dict[int, list[str]] = {}
    with TeacherServer(latency_seconds=0.01) as server:
        with teacher_of(server.base_url) as teacher:

            def work(number: int) -> None:
                found[number] = [teacher.ask(f"{question}").text for question in range(6)]

            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        counts = server.counts

    assert 1 == len({tuple(texts) for texts in found.values()})
    assert (8, 6) == (len(found), counts.requests)
    assert [] == RunReader(RunFolder.under(run_dir)).problems()


def test_what_goes_wrong_is_raised_to_who_asked(teacher_of):
    transport = FakeTransport(failed(400, is_retryable=False))
    with teacher_of(transport) as teacher:
        with pytest.raises(TeacherRefused):
            teacher.ask("a")
        with pytest.raises(AnswerUnusable):
            teacher.ask("b", check=lambda answer: "bad")
        with pytest.raises(RequestError):
            teacher.ask([{"role": "user", "content": b"bytes"}])

        assert "4" == teacher.ask("a").text


def test_a_question_may_be_asked_in_the_background(teacher_of):
    held = HeldBack()
    with teacher_of(FakeTransport(held)) as teacher:
        future = teacher.begin(teacher.request("a"))
        held.is_sent.wait()
        was_done = future.done()
        held.may_arrive.set()

        assert (False, "said a") == (was_done, future.result(10).text)


def test_one_answer_of_many_that_fails_does_not_stop_the_others(teacher_of, tracker):
    transport = FakeTransport(failed(400, is_retryable=False), otherwise=slow_echo)
    with teacher_of(transport, limits=Limits(concurrency=1)) as teacher:
        futures = [teacher.begin(teacher.request(text)) for text in "abc"]

        assert isinstance(futures[0].exception(10), TeacherRefused)
        assert ["said b", "said c"] == [future.result(10).text for future in futures[1:]]


def test_closing_twice_does_nothing(teacher_of):
    transport = FakeTransport()
    teacher = teacher_of(transport)
    teacher.close()
    teacher.close(waits=True)

    assert 1 == transport.num_closed


def test_several_threads_may_close_it_at_once(teacher_of):
    transport = FakeTransport(otherwise=slow_echo)
    teacher = teacher_of(transport)
    teacher.begin(teacher.request("a"))
    threads = [threading.Thread(target=teacher.close, kwargs={"waits": number % 2 == 0}) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert not any(thread.is_alive() for thread in threads)
    assert 1 == transport.num_closed


def test_whoever_asks_a_closed_teacher_is_told_so(teacher_of):
    teacher = teacher_of(FakeTransport())
    teacher.close()

    with pytest.raises(TeacherClosed):
        teacher.ask("a")
    with pytest.raises(TeacherClosed):
        teacher.begin(teacher.request("a"))


def test_closing_gives_up_what_is_under_way_and_nobody_waits_for_ever(teacher_of, tracker):
    held = [HeldBack() for _ in range(2)]
    teacher = teacher_of(FakeTransport(*held), limits=Limits(concurrency=2))
    futures = [teacher.begin(teacher.request(f"{number}")) for number in range(6)]
    for each in held:
        each.is_sent.wait()
    teacher.close()

    kinds = []
    for future in futures:
        try:
            kinds.append(type(future.exception(10)))
        except CancelledError:
            kinds.append(CancelledError)
    assert {CancelledError, TeacherClosed} >= set(kinds)
    assert (2, 0) == (tracker.responses.spending().requests_in_doubt, tracker.responses.spending().reserved)


def test_closing_may_wait_for_what_is_paid_for(teacher_of, tracker):
    held = HeldBack()
    teacher = teacher_of(FakeTransport(held))
    future = teacher.begin(teacher.request("a"))
    held.is_sent.wait()
    closing = threading.Thread(target=teacher.close, kwargs={"waits": True})
    closing.start()
    held.may_arrive.set()
    closing.join(20)

    assert "said a" == future.result(10).text
    assert (1, 0) == (tracker.responses.spending().answers, tracker.responses.spending().requests_in_doubt)


def test_threads_that_ask_while_it_is_closed_all_come_to_an_end(teacher_of, tracker, run_dir):
    transport = FakeTransport(otherwise=slow_echo)
    teacher = teacher_of(transport, limits=Limits(concurrency=3))
    ends: list[str] = []
    go = threading.Barrier(9)

    def work(number: int) -> None:
        go.wait()
        for question in range(20):
            try:
                ends.append(teacher.ask(f"{question % 5} {number % 3}").text[:4])
            except (CancelledError, TeacherClosed) as error:
                ends.append(type(error).__name__)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    go.wait()
    teacher.close(waits=True)
    for thread in threads:
        thread.join(20)

    assert not any(thread.is_alive() for thread in threads)
    assert 160 == len(ends)
    assert {"said", "CancelledError", "TeacherClosed"} >= set(ends)
    assert 0 == tracker.responses.spending().reserved
    assert [] == RunReader(RunFolder.under(run_dir)).problems()
