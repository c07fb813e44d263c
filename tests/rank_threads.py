"""Ranks that are threads of this process: what they tell each other, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

_LIMIT_SECONDS = 60.0


class ThreadRank:
    """One of several; a rank that ends early breaks the waits of the others."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.num_ranks = len(slots)
        self.is_main = rank == 0
        self.is_stop_agreed = False
        self.is_bad_step_agreed = False
        self._slots = slots
        self._barrier = barrier

    def all_gather(self, value: Any, what: str) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait(_LIMIT_SECONDS)
        found = list(self._slots)
        self._barrier.wait(_LIMIT_SECONDS)
        return found

    def broadcast(self, value: Any, what: str) -> Any:
        return self.all_gather(value, what)[0]

    def main_process_first(self, what: str) -> AbstractContextManager[object]:
        raise NotImplementedError

    def all_reduce(self, numbers: Tensor) -> Tensor:
        raise NotImplementedError

    def share_stop_request(self, wants_to_stop: bool, sees_bad_step: bool = False) -> None:
        raise NotImplementedError

    def collective(self, what: str) -> AbstractContextManager[object]:
        return nullcontext()

    def for_background_thread(self) -> ThreadRank:
        return self


def on_ranks(num_ranks: int, act: Callable[[ThreadRank], Any]) -> list[Any]:
    """What each rank returned, or the exception that it raised."""
    slots: list[Any] = [None] * num_ranks
    barrier = threading.Barrier(num_ranks)

    def run(rank: int) -> Any:
        try:
            return act(ThreadRank(rank, slots, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(run, range(num_ranks)))
