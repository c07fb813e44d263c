"""What ends a process that waits too long, and what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.watchdog import GRACE_SECONDS, Watchdog

LIMIT_SECONDS = 8.0


class Moment:
    """A steady clock that is set."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class FakeContact:
    lost_seconds = 0.0


@pytest.fixture
def now() -> Moment:
    return Moment()


@pytest.fixture
def ended() -> list[str]:
    """What a process has said when it was ended."""
    return []


class FakeExit:
    """Notes when the process would have been ended."""

    def __init__(self, ended: list[str]) -> None:
        self.ended = ended
        self.is_cancelled = False
        self.ends_in = 0.0

    def now(self, text: str) -> None:
        self.ended.append(text)

    def postpone(self, seconds: float, text: str) -> None:
        self.ends_in, self.text = seconds, text

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.fixture
def forced(ended: list[str]) -> FakeExit:
    return FakeExit(ended)


@pytest.fixture
def watch(now: Moment, forced: FakeExit) -> Iterator[Callable[..., Any]]:
    started = []

    def start(activities: Activities) -> Watchdog:
        name = "Rank 1 (host-b, pid 7)"
        started.append(Watchdog(activities, forced, name=name, limit_seconds=LIMIT_SECONDS, now=now))
        return started[0]

    yield start
    for watchdog in started:
        watchdog.stop()


def test_a_wait_beyond_the_limit_is_ended_and_named(now, watch, ended):
    activities = Activities(now=now)
    watchdog = watch(activities)

    with activities.doing("joining the other processes", is_wait=True):
        now.seconds += LIMIT_SECONDS + GRACE_SECONDS - 1
        watchdog.look()
        assert [] == ended
        now.seconds += 2
        watchdog.look()

    assert ended[0].startswith(
        "Rank 1 (host-b, pid 7) gives up after 14 s of joining the other processes (limit 8 s). "
        "The process ends with exit code 75."
    ), ended


def test_work_of_ones_own_may_take_any_time_until_the_run_is_lost(now, watch, ended):
    activities, contact = Activities(now=now), FakeContact()
    watchdog = watch(activities)
    watchdog.contact = contact

    with activities.doing("computing step 7", is_wait=False):
        now.seconds += 3600
        watchdog.look()
        assert [] == ended
        contact.lost_seconds = 11.0
        watchdog.look()

    assert "after 3600 s of computing step 7 (limit 8 s); the other ranks have given up or are away" in ended[0]


def test_the_time_between_two_exchanges_counts_anew_after_each(now, watch, ended):
    activities, contact = Activities(now=now), FakeContact()
    contact.lost_seconds = 11.0
    watchdog = watch(activities)
    watchdog.contact = contact

    for _ in range(5):
        now.seconds += LIMIT_SECONDS
        with activities.doing("summing the losses", is_wait=True):
            watchdog.look()
    assert [] == ended
    now.seconds += LIMIT_SECONDS + GRACE_SECONDS + 1
    watchdog.look()

    assert "of working on its own" in ended[0]


def test_a_wait_in_another_thread_is_seen(now, watch, ended):
    activities = Activities(now=now)
    watchdog = watch(activities)
    is_waiting, may_end = threading.Event(), threading.Event()

    def save() -> None:
        with activities.doing("writing checkpoint_8", is_wait=True):
            is_waiting.set()
            may_end.wait()

    thread = threading.Thread(target=save)
    thread.start()
    is_waiting.wait()
    now.seconds += 60
    watchdog.look()
    may_end.set()
    thread.join()

    assert "writing checkpoint_8" in ended[0]
    assert ["working on its own"] == [each.what for each in activities.all()]


def test_who_has_learned_of_a_loss_has_a_time_to_leave(now, watch, ended, forced):
    watchdog = watch(Activities(now=now))

    watchdog.leave_within(10, "after another rank was lost")
    now.seconds += 9
    watchdog.look()
    assert [] == ended
    now.seconds += 2
    watchdog.look()
    watchdog.stop()

    assert "could not end by itself after another rank was lost" in ended[0]
    assert (GRACE_SECONDS, False) == (forced.ends_in, forced.is_cancelled)


def test_it_would_end_without_the_interpreter_until_it_is_stopped(watch, forced):
    watchdog = watch(Activities())
    watchdog.look()
    assert LIMIT_SECONDS + GRACE_SECONDS == forced.ends_in
    assert "Python's lock was not released for 13 s; it was last seen working on its own" in forced.text

    watchdog.stop()

    assert forced.is_cancelled


def test_its_own_thread_looks(forced, ended):
    activities = Activities()
    with activities.doing("summing the losses", is_wait=True):
        watchdog = Watchdog(activities, forced, name="Rank 1", limit_seconds=0.1 - GRACE_SECONDS)
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
        watchdog.stop()

    assert "summing the losses" in ended[0]
