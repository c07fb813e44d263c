"""An error of one rank that ends all of them.

The others would take the end of that rank for a loss, and ask to be started again; a start does not mend the error.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch.distributed.distributed_c10d import PrefixStore, Store

from crashproof.errors import CrashproofError, RankFailed, RankLost, TeacherUnreachable
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["SharedErrors", "is_temporary"]

_STAY_SECONDS = 15.0
_POLL_SECONDS = 0.05
_MAIN = 0
_MOST_CHARACTERS = 500


def is_temporary(error: CrashproofError) -> bool:
    """Whether the same command, started again, may succeed: a lost rank or teacher may be back."""
    return isinstance(error, (RankLost, TeacherUnreachable))


class SharedErrors:
    """What the ranks that started together tell each other of their errors, in their common store."""

    def __init__(self, store: Store, *, rank: int, num_ranks: int) -> None:
        self._store = PrefixStore("errors", store)
        self._rank = rank
        self._num_ranks = num_ranks

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an error that ends this rank; inside whatever makes them notice its end."""
        try:
            yield
        except CrashproofError as error:
            if not is_temporary(error) and not isinstance(error, RankFailed):
                self._tell(error)
            raise

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Name the error of another rank instead of the loss that it looks like; outside what `telling` is in.

        Raises:
            RankFailed: Another rank has ended with an error.
        """
        try:
            yield
        except RankLost:
            self.raise_error_of_another()
            raise
        finally:
            self._leave()

    def raise_error_of_another(self) -> None:
        """Do nothing as long as no rank has told of an error.

        Raises:
            RankFailed: One has.
        """
        # Where the store is gone, the loss is all that is known.
        with suppress(RuntimeError):
            if self._store.check(["error"]):
                rank, _, text = self._store.get("error").decode().partition(" ")
                if int(rank) != self._rank:
                    raise RankFailed(int(rank), text)

    def _tell(self, error: CrashproofError) -> None:
        text = without_secrets(str(error))[:_MOST_CHARACTERS]
        with suppress(RuntimeError):
            # The first error counts: a later one may come of it.
            self._store.compare_set("error", "", f"{self._rank} {text}")

    def _leave(self) -> None:
        with suppress(RuntimeError):
            self._store.set(f"left/{self._rank}", "")
            # Without torchrun the store lives in rank 0.
            if self._rank == _MAIN and self._store.check(["error"]):
                self._await_others()

    def _await_others(self) -> None:
        ends_at = time.monotonic() + _STAY_SECONDS
        others = [f"left/{rank}" for rank in range(self._num_ranks) if rank != _MAIN]
        while not self._store.check(others) and time.monotonic() < ends_at:
            time.sleep(_POLL_SECONDS)
