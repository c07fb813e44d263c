"""Ranks that meet in one store before they join; here they are threads."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore
from torch.distributed.distributed_c10d import Store

from crashproof.errors import ConfigError, RankFailed, RankLost, RanksDisagree
from crashproof.pytorch.coordination.meeting import StartMeeting
from crashproof.pytorch.interrupts import Interrupts, StopRequested

Act = Callable[[StartMeeting, int], None]

AGREED = "agreed"
TWO_RANKS = {"WORLD_SIZE": "2"}


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))


class Ranks:
    """Ranks with a connection to the store each, as processes have."""

    def __init__(self, server: TCPStore, num_ranks: int) -> None:
        self.interrupts = [Interrupts() for _ in range(num_ranks)]
        self._port = server.port

    def meeting(self, rank: int) -> StartMeeting:
        num_ranks = len(self.interrupts)

        def connect(**settings: Any) -> tuple[Store, int, int]:
            store = TCPStore("127.0.0.1", self._port, wait_for_workers=False, timeout=timedelta(seconds=30))
            return store, rank, num_ranks

        environment = {"WORLD_SIZE": str(num_ranks)}
        return StartMeeting(self.interrupts[rank], environment=environment, connect_to_store=connect)

    def run(self, act: Act, only: range | None = None) -> list[object]:
        """What each rank raises; `AGREED` if nothing."""

        def outcome(rank: int) -> object:
            try:
                act(self.meeting(rank), rank)
            except Exception as error:
                return error
            return AGREED

        chosen = only or range(len(self.interrupts))
        with ThreadPoolExecutor(len(chosen)) as pool:
            return list(pool.map(outcome, chosen))


def agree(meeting: StartMeeting, limit_seconds: float = 30, **description: str) -> AbstractContextManager[None]:
    return meeting.agreement(lambda: dict(description), limit_seconds=limit_seconds)


def test_a_process_without_torchrun_describes_nothing_and_meets_nobody() -> None:
    def describe() -> dict[str, str]:
        raise AssertionError("nobody asks")

    meeting = StartMeeting(Interrupts(), environment={})
    with meeting.agreement(describe, limit_seconds=1):
        pass
    with pytest.raises(ConfigError), meeting.reporting_failure():
        raise ConfigError("Wrong.")


def test_a_process_without_torchrun_ends_where_it_was_asked_to_stop_before() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        meeting = StartMeeting(interrupts, environment={})
        with pytest.raises(StopRequested), agree(meeting):
            raise AssertionError("it does not begin")


def test_ranks_that_agree_go_on(server: TCPStore) -> None:
    def act(meeting: StartMeeting, rank: int) -> None:
        with agree(meeting, seed="1"):
            pass

    assert [AGREED] * 3 == Ranks(server, 3).run(act)


def test_what_differs_is_raised_on_all_ranks(server: TCPStore) -> None:
    def act(meeting: StartMeeting, rank: int) -> None:
        with agree(meeting, seed="1" if rank == 2 else "0", steps="5"):
            raise AssertionError("they differ")

    raised = Ranks(server, 3).run(act)

    assert [RanksDisagree] * 3 == [type(each) for each in raised]
    assert 1 == len({str(each) for each in raised})
    assert "started with different inputs: seed: 1 on rank 2, 0 on ranks 0-1. Give all processes" in str(raised[0])


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_before_it_is_told_to_all_others(server: TCPStore, failing: int) -> None:
    error = ConfigError("password=hunter2-and-more is wrong.", hint="Set it.")

    def act(meeting: StartMeeting, rank: int) -> None:
        with meeting.reporting_failure():
            if rank == failing:
                raise error
        with agree(meeting):
            raise AssertionError("one cannot start")

    raised = Ranks(server, 3).run(act)

    assert error is raised.pop(failing)
    for each in raised:
        assert isinstance(each, RankFailed)
        assert not each.may_pass
        assert f"Rank {failing} failed while preparing to start: password=(secret) is wrong. Set it." == str(each)


def test_a_rank_that_never_comes_is_named_after_the_limit(server: TCPStore) -> None:
    def act(meeting: StartMeeting, rank: int) -> None:
        with agree(meeting, limit_seconds=1):
            raise AssertionError("one is missing")

    begun_at = time.monotonic()
    raised = Ranks(server, 3).run(act, only=range(2))

    assert [RankLost] * 2 == [type(each) for each in raised]
    assert ["Lost rank 2 while comparing what the processes were started with (limit 1 s)"] * 2 == [
        str(each).partition(": ")[0] for each in raised
    ]
    assert time.monotonic() - begun_at < 20


def test_without_the_main_process_the_others_end_soon_after_the_limit(server: TCPStore) -> None:
    def act(meeting: StartMeeting, rank: int) -> None:
        with agree(meeting, limit_seconds=0.5):
            raise AssertionError("the main process is missing")

    raised = Ranks(server, 3).run(act, only=range(1, 3))

    assert [[0], [0]] == [each.missing for each in raised if isinstance(each, RankLost)]


@pytest.mark.parametrize("asked", [0, 1])
def test_a_rank_that_is_asked_to_stop_meanwhile_tells_the_others(server: TCPStore, asked: int) -> None:
    ranks = Ranks(server, 2)
    ranks.interrupts[asked].received = signal.SIGTERM

    def act(meeting: StartMeeting, rank: int) -> None:
        if rank == 1 - asked:
            time.sleep(1)
        with agree(meeting):
            raise AssertionError("one stops")

    raised = ranks.run(act)

    other = raised.pop(1 - asked)
    assert [StopRequested] == [type(each) for each in raised]
    assert isinstance(other, RankFailed)
    assert other.may_pass
    assert f"Rank {asked} failed while preparing to start: It was asked to stop (SIGTERM)." == str(other)


def test_a_store_that_cannot_be_reached_is_a_lost_rank() -> None:
    def connect(**settings: Any) -> tuple[Store, int, int]:
        raise RuntimeError("The client socket has timed out\nwith a long trace")

    meeting = StartMeeting(Interrupts(), environment=TWO_RANKS, connect_to_store=connect)

    with pytest.raises(RankLost, match=r"\(limit 30 s\): The client socket has timed out\. Check"), agree(meeting):
        pass
    # Its own failure is what counts; nobody is there to be told.
    with pytest.raises(ConfigError), meeting.reporting_failure():
        raise ConfigError("Wrong.")


def test_a_store_that_is_lost_meanwhile_is_a_lost_rank() -> None:
    class Broken(HashStore):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    meeting = StartMeeting(Interrupts(), environment=TWO_RANKS, connect_to_store=lambda **settings: (Broken(), 1, 2))

    with pytest.raises(RankLost, match="Connection reset by peer"), agree(meeting):
        pass
