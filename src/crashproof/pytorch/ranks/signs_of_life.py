"""What the ranks tell each other beside the training.

Each renews a sign of life in their common store, over a connection of its own. It says what the rank is doing, so
that one that is late can be told from one that is gone. Ranks that notice a loss sign a list there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.bounded_store import BoundedStore, StoreSilent
from crashproof.pytorch.ranks.regular_thread import RegularThread
from crashproof.rules.ranks.absence import Sign

__all__ = ["SignsOfLife"]

_INTERVAL_SECONDS = 1.0
_NOTICED = "noticed"


class SignsOfLife:
    """The signs of all ranks, this one's among them."""

    def __init__(self, store: BoundedStore, activities: Activities, *, rank: int, limit_seconds: float) -> None:
        """Nothing is said before `start`."""
        self._store = store
        self._activities = activities
        self._rank = rank
        self._limit_seconds = limit_seconds
        self._num_beats = 0
        self._heard_at = time.monotonic()
        self._noticed_at = math.inf
        self._is_over = False
        self.has_failed = False
        """Whether this rank has left with an error that another start does not mend."""
        self._thread: RegularThread | None = None

    def start(self) -> None:
        """Give a first sign now, and renew it from now on."""
        self._renew()
        self._thread = RegularThread(self._renew, name="crashproof-signs", interval_seconds=_INTERVAL_SECONDS)

    def stop(self, left: str, *, is_final: bool = False) -> None:
        """Say why this rank leaves, as the last sign; see `Sign.is_final`."""
        if self._thread is not None:
            self._thread.stop(seconds=_INTERVAL_SECONDS)
        self._is_over = True
        self.has_failed = is_final
        self._try(
            lambda: self._tell(
                Sign(beats=self._num_beats + 1, left=left, is_final=is_final), seconds=_INTERVAL_SECONDS
            )
        )

    @property
    def lost_seconds(self) -> float:
        """Since any rank has noticed a loss, or the store has said nothing for longer than the limit; else 0."""
        if self._is_over:
            return 0.0
        return max(0.0, time.monotonic() - min(self._noticed_at, self._heard_at + self._limit_seconds))

    def of(self, rank: int, *, seconds: float) -> Sign | None:
        """The newest sign of a rank.

        Raises:
            StoreSilent: The store did not answer; so do the methods below.
        """
        found = self._store.get(_key(rank), seconds=seconds)
        return None if found is None else msgspec.json.decode(found, type=Sign)

    def notice_loss(self, *, seconds: float) -> None:
        """Let the others know that this rank has noticed a loss."""
        self._noticed_at = min(self._noticed_at, time.monotonic())
        self._store.append(_NOTICED, f"{self._rank},", seconds=seconds)

    def have_noticed(self, *, seconds: float) -> set[int]:
        """The ranks that have noticed a loss."""
        signed = self._store.get(_NOTICED, seconds=seconds) or ""
        return {int(each) for each in signed.split(",") if each}

    def _renew(self) -> None:
        self._try(self._exchange)

    def _exchange(self) -> None:
        newest = self._activities.newest()
        self._num_beats += 1
        # This thread may wait: how long nothing was heard is what others ask it.
        sign = Sign(beats=self._num_beats, what=newest.what, seconds=time.monotonic() - newest.since)
        self._tell(sign, seconds=self._limit_seconds)
        has_loss = bool(self.have_noticed(seconds=self._limit_seconds))
        self._heard_at = time.monotonic()
        if has_loss:
            self._noticed_at = min(self._noticed_at, self._heard_at)

    def _tell(self, sign: Sign, *, seconds: float) -> None:
        self._store.set(_key(self._rank), msgspec.json.encode(sign).decode(), seconds=seconds)

    @staticmethod
    def _try(call: Callable[[], None]) -> None:
        """Do what a store that is gone may prevent: nothing is heard then, which is what counts."""
        try:
            call()
        except StoreSilent:
            return


def _key(rank: int) -> str:
    return f"sign/{rank}"
