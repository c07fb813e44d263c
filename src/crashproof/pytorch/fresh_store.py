"""Connect to the store of the processes that run now, without a trace of earlier ones.

torchrun may keep its store while it starts the processes again. Nothing that it tells them names one start on all
hosts alike: each host counts its own restarts, and a change of the hosts is not counted at all. So the processes
agree on a name before they use the store for anything else.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

__all__ = ["RanksMissing", "connect", "fresh_store"]

_PREFIX = "crashproof/start"
_POLL_SECONDS = 0.05


class RanksMissing(Exception):
    """These ranks did not come within the limit."""

    def __init__(self, missing: list[int]) -> None:
        super().__init__(f"they did not come: {missing}")
        self.missing = missing


def connect(*, limit_seconds: float, environment: Mapping[str, str] = os.environ) -> tuple[Store, int, int]:
    """Connect to the store of the processes that `torchrun` started; this process's rank, and how many there are.

    Raises:
        RanksMissing: Not all of them came within the limit.
        RuntimeError, ValueError: The store cannot be reached, or the environment is incomplete.
    """
    limit = timedelta(seconds=limit_seconds)
    store, rank, num_ranks = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    return fresh_store(store, rank=rank, num_ranks=num_ranks, limit_seconds=limit_seconds), rank, num_ranks


def fresh_store(store: Store, *, rank: int, num_ranks: int, limit_seconds: float) -> Store:
    """Meet all other processes that were started with this one, and return a part of the store of their own.

    Raises:
        RanksMissing: Not all of them came within the limit.
        RuntimeError: The store cannot be reached.
    """
    meeting = _Meeting(
        store=PrefixStore(_PREFIX, store),
        rank=rank,
        num_ranks=num_ranks,
        ends_at=time.monotonic() + limit_seconds,
        own=uuid.uuid4().hex,
    )
    meeting.store.set(f"here/{rank}", meeting.own)
    return PrefixStore(meeting.gather() if rank == 0 else meeting.attend(), meeting.store)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meeting:
    """Rank 0 says who is here, the others confirm, and once all have confirmed the same list it is agreed.

    An entry of a process that is gone may be in the list; it is not confirmed, and the list is said anew once the
    process that has come in its place says so.
    """

    store: Store
    rank: int
    num_ranks: int
    ends_at: float
    """By the steady clock."""
    own: str
    """Names this process, and no other of any time."""

    def gather(self) -> str:
        """Rank 0's part; the name of the agreed list."""
        said: list[str] = []
        name = ""
        while True:
            here = self._read([f"here/{rank}" for rank in range(self.num_ranks)])
            if here and here != said:
                said, name = here, uuid.uuid4().hex
                self.store.set("list", json.dumps([name, *said]))
            if name and self._read(self._confirmations) == [name] * (self.num_ranks - 1):
                self.store.set(f"agreed/{name}", "")
                return name
            if self._is_over():
                raise RanksMissing([rank for rank in range(1, self.num_ranks) if not self._has_confirmed(rank, name)])

    def attend(self) -> str:
        """The part of all others; the name of the agreed list."""
        confirmed = ""
        while True:
            name, *here = json.loads((self._read(["list"]) or ['[""]'])[0])
            if len(here) == self.num_ranks and here[self.rank] == self.own and name != confirmed:
                self.store.set(f"confirmed/{self.rank}", name)
                confirmed = name
            if confirmed and self.store.check([f"agreed/{confirmed}"]):
                return confirmed
            if self._is_over():
                raise RanksMissing([0])

    @property
    def _confirmations(self) -> list[str]:
        return [f"confirmed/{rank}" for rank in range(1, self.num_ranks)]

    def _has_confirmed(self, rank: int, name: str) -> bool:
        """Whether a rank has confirmed the newest list, or has come at all where there is none."""
        return self._read([f"confirmed/{rank}"]) == [name] if name else self.store.check([f"here/{rank}"])

    def _is_over(self) -> bool:
        """Whether the limit is reached; if not, pause before the next look."""
        if time.monotonic() > self.ends_at:
            return True
        time.sleep(_POLL_SECONDS)
        return False

    def _read(self, keys: list[str]) -> list[str] | None:
        """The values of all keys, or None while one has none."""
        return [value.decode() for value in self.store.multi_get(keys)] if self.store.check(keys) else None
