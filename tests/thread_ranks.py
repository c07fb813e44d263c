"""Ranks that are threads of one process, for tests of what they tell each other."""

from __future__ import annotations

import threading
from typing import Any

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
