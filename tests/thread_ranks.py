"""Ranks that are threads of one process, for tests of what they tell each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crashproof.errors import RanksDisagree
from crashproof.pytorch.ranks import SingleRank


class ThreadRanks(SingleRank):
    """One of several ranks that share a list; it gathers, and nothing else."""

    def __init__(self, rank: int, num_ranks: int) -> None:
        super().__init__()
        self.rank = rank
        self.num_ranks = num_ranks
        self.is_main = rank == 0
        self.values: list[Any] = []
        self.barrier = threading.Barrier(1)

    def all_gather(self, value: Any, what: str) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(timeout=30)
        gathered = list(self.values)
        # Nobody may write the next values before all have read these.
        self.barrier.wait(timeout=30)
        return gathered


def ranks_in_threads(num_ranks: int) -> list[ThreadRanks]:
    """All ranks; each belongs into a thread of its own."""
    values: list[Any] = [None] * num_ranks
    barrier = threading.Barrier(num_ranks)
    ranks = [ThreadRanks(rank, num_ranks) for rank in range(num_ranks)]
    for each in ranks:
        each.values, each.barrier = values, barrier
    return ranks


def said_by_two(compare: Callable[[ThreadRanks], None]) -> str:
    """What both of two ranks say when they compare something; nothing if they agree."""

    def outcome(ranks: ThreadRanks) -> str:
        try:
            compare(ranks)
        except RanksDisagree as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        said = set(pool.map(outcome, ranks_in_threads(2)))
    assert 1 == len(said)
    return said.pop()
