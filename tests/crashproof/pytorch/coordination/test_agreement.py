"""Several ranks as threads: what one fails at, all fail at."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from thread_ranks import ThreadRanks, ranks_in_threads

from crashproof.errors import ConfigError, CrashproofError, RankFailed, RankLost, RanksDisagree, TeacherUnreachable
from crashproof.pytorch.coordination.agreement import all_or_none, require_same
from crashproof.pytorch.interrupts import StopRequested


def run(act: Callable[[ThreadRanks], None], num_ranks: int = 3) -> list[BaseException | None]:
    """What each rank raises."""

    def outcome(ranks: ThreadRanks) -> BaseException | None:
        try:
            act(ranks)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(outcome, ranks_in_threads(num_ranks)))


def failing_on(rank: int, error: Exception) -> Callable[[ThreadRanks], None]:
    def act(ranks: ThreadRanks) -> None:
        with all_or_none(ranks, "reading the data"):
            if ranks.rank == rank:
                raise error

    return act


def test_where_all_succeed_all_go_on() -> None:
    assert [None] * 3 == run(failing_on(7, ValueError("never")))


@pytest.mark.parametrize(
    "error, says, may_pass",
    [
        (ConfigError("seed is missing.", hint="Set it."), "reading the data: seed is missing. Set it.", False),
        (TeacherUnreachable("http://t", attempts=1, seconds=2, last="refused"), "http://t: no response", True),
        (StopRequested("SIGTERM"), "it was asked to stop (SIGTERM).", True),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero", True),
        (ConfigError("api_key=sk-abcdefghijklmnop1234 is wrong."), "api_key=(secret) is wrong.", False),
    ],
    ids=["config", "teacher", "stop", "unexpected", "with-a-secret"],
)
def test_a_failure_of_one_is_raised_there_and_named_by_all_others(
    error: Exception, says: str, may_pass: bool
) -> None:
    raised = run(failing_on(1, error))

    assert error is raised[1]
    for other in (raised[0], raised[2]):
        assert isinstance(other, RankFailed)
        assert str(other).startswith("Rank 1 failed while reading the data: ")
        assert says in str(other)
        assert may_pass is other.may_pass


def test_a_rank_that_is_lost_meanwhile_does_not_hide_ones_own_failure() -> None:
    class Alone(ThreadRanks):
        def all_gather(self, value: Any, what: str) -> list[Any]:
            raise RankLost(what, missing=[1], seconds=3, reason="closed")

    own = ConfigError("mine")
    with pytest.raises(ConfigError, match="mine"), all_or_none(Alone(0, 2), "reading"):
        raise own
    with pytest.raises(RankLost, match="Lost rank 1 while reading"), all_or_none(Alone(0, 2), "reading"):
        pass


def test_a_lost_rank_is_not_waited_for_again() -> None:
    class NeverAsked(ThreadRanks):
        def all_gather(self, value: Any, what: str) -> list[Any]:
            raise AssertionError("nobody is there to be asked")

    with pytest.raises(RankLost), all_or_none(NeverAsked(0, 2), "preparing"):
        raise RankLost("preparing", missing=[0], seconds=3, reason="it sent no heartbeat")


def test_descriptions_that_differ_are_named_on_all_ranks_alike() -> None:
    def act(ranks: ThreadRanks) -> None:
        description = {"the data": "48 samples" if ranks.rank < 2 else "47 samples"}
        require_same(ranks, description, what="files", hint="Copy them.")

    raised = run(act)

    expected = (
        "The processes of this run do not have the same files: the data: 47 samples on rank 2, 48 samples on ranks "
        "0-1. Copy them."
    )
    assert [expected] * 3 == [str(each) for each in raised]
    assert {RanksDisagree} == {type(each) for each in raised}
    assert not any(isinstance(each, CrashproofError) and each.may_pass for each in raised)


def test_equal_descriptions_change_nothing() -> None:
    assert [None] * 2 == run(lambda ranks: require_same(ranks, {"a": "1"}, what="files", hint=""), num_ranks=2)
