"""Which rank is slow is compared now and then, and reported by the main one."""

from __future__ import annotations

from typing import Any

import pytest

from crashproof.distillation.training.rank_times import RankComparison
from crashproof.pytorch.own_time import HostMarks, OwnTime
from crashproof.pytorch.ranks import SingleRank
from crashproof.pytorch.step_timer import ShardedTimer
from crashproof.records.rank_times import RankTimes
from crashproof.testing import FakeClock


class TwoRanks(SingleRank):
    """This process and another one, which has measured what the test says."""

    num_ranks = 2

    def __init__(self, *, rank: int, other: tuple[str, int, float, float]) -> None:
        super().__init__()
        self.rank = rank
        self.is_main = rank == 0
        self.num_exchanges = 0
        self.other = other

    def all_gather(self, value: Any, what: str) -> list[Any]:
        self.num_exchanges += 1
        of_other = (self.other, value[1])
        return [value, of_other] if self.is_main else [of_other, value]


class Run:
    """Steps of a tenth of a second, half of which is a wait for the other rank."""

    def __init__(self, ranks: SingleRank) -> None:
        self.clock = FakeClock()
        self.reports: list[RankTimes] = []
        self.timer = ShardedTimer([], OwnTime(HostMarks(self.clock)))
        self.comparison = RankComparison(ranks, self.timer, report=self.reports.append, clock=self.clock, host="here")
        self.step = 0

    def train(self, steps: int, *, own: float = 0.05, wait: float = 0.05) -> None:
        for _ in range(steps):
            self.step += 1
            self.clock.advance(own)
            with self.timer.waiting():
                self.clock.advance(wait)
            self.timer.end_step()
            self.comparison.after_step(self.step)


@pytest.fixture
def ranks() -> TwoRanks:
    return TwoRanks(rank=0, other=("there", 4, 0.1, 0.4))


def test_the_slow_rank_is_named_after_a_few_steps(ranks):
    run = Run(ranks)
    run.train(5)
    (times,) = run.reports

    assert [("there", 1, 0.1, 0.4), ("here", 0, 0.05, 0.05)] == [
        (each.host, each.rank, each.seconds, each.most_seconds) for each in times.slowest
    ]
    assert (5, 4, 2, 0.1) == (times.step, times.num_steps, times.num_ranks, times.step_seconds)


def test_the_first_step_is_left_out_for_it_warms_up(ranks):
    run = Run(ranks)
    run.train(1, own=60.0)
    run.train(4)

    assert 0.05 == run.reports[0].slowest[1].most_seconds


def test_it_costs_one_exchange_in_half_a_minute(ranks):
    run = Run(ranks)
    run.train(5)
    run.train(10 * 600)

    run.train(10 * 30)

    assert 20 <= ranks.num_exchanges <= 22
    assert 2 == len(run.reports)


def test_off_the_main_rank_nothing_is_reported_and_the_exchanges_are_the_same(ranks):
    main, other = Run(ranks), Run(TwoRanks(rank=1, other=("there", 4, 0.05, 0.05)))
    for run in (main, other):
        run.train(700)

    assert [] == other.reports
    assert ranks.num_exchanges == other.comparison._ranks.num_exchanges


def test_nothing_is_reported_while_a_rank_has_measured_nothing(ranks):
    ranks.other = ("there", 0, 0.0, 0.0)
    run = Run(ranks)
    run.train(5)

    assert [] == run.reports
    assert 1 == ranks.num_exchanges


def test_a_process_that_is_alone_compares_nothing():
    run = Run(SingleRank())
    run.train(1000)

    assert [] == run.reports
