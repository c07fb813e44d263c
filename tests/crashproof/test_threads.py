from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from crashproof import threads
from crashproof.threads import run_or_submit, try_to_start


@pytest.fixture
def no_threads(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(threads, "_has_warned", threading.Event())


def test_where_no_thread_can_be_started_the_work_is_done_at_once_and_once(no_threads, monkeypatch):
    done: list[int] = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        assert "1" == run_or_submit(pool, lambda: done.append(1) or "1").result(timeout=0)
        # Later there is a thread, which finds what the pool had kept.
        monkeypatch.undo()
        run_or_submit(pool, lambda: done.append(2)).result(timeout=5)

    assert [1, 2] == done


def test_what_the_work_raises_is_raised_by_its_result(no_threads):
    def fail():
        raise ValueError("in the work")

    with ThreadPoolExecutor(max_workers=1) as pool, pytest.raises(ValueError, match="in the work"):
        run_or_submit(pool, fail).result(timeout=0)


def test_the_lack_of_threads_is_said_once(no_threads, caplog):
    with caplog.at_level(logging.WARNING):
        assert not try_to_start(threading.Thread())
        assert not try_to_start(threading.Thread())

    assert ["ulimit -u" in each.getMessage() for each in caplog.records] == [True]


def test_a_thread_that_can_be_started_is():
    thread = threading.Thread()

    assert try_to_start(thread)
    thread.join()
