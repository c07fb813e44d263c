"""Retry a save on all ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable

from crashproof.pytorch.ranks import Ranks
from crashproof.rules.saves.failures import retry_pause_seconds

__all__ = ["SaveRetries"]

_LOOK_SECONDS = 1.0
"""How soon a request to stop is noticed; it also keeps each wait of the ranks for each other short."""
_SECONDS_ONCE_ASKED_TO_STOP = 10.0
"""Schedulers kill soon after they have asked."""


class SaveRetries:
    """How long the ranks of a run try something again that has to succeed."""

    def __init__(
        self,
        ranks: Ranks,
        *,
        limit_seconds: float,
        is_stop_requested: Callable[[], bool],
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """All ranks create it at the same point; the limit is short once one of them is asked to stop."""
        self._ranks = ranks
        self._limit_seconds = limit_seconds
        self._is_stop_requested = is_stop_requested
        self._sleep = sleep
        self._now = now
        self._began_at = now()
        self._num_tries = 0

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return self._now() - self._began_at

    def wait(self) -> bool:
        """Wait after a try that failed, longer each time; return whether there is time for another, on all ranks.

        Raises:
            RankLost: another rank died, or did not take part within the limit.
        """
        self._num_tries += 1
        pause = retry_pause_seconds(self._num_tries)
        while pause > 0 and self._may_go_on():
            self._sleep(min(pause, _LOOK_SECONDS))
            pause -= _LOOK_SECONDS
        return pause <= 0

    def _may_go_on(self) -> bool:
        limit = self._limit_seconds
        if self._is_stop_requested():
            limit = min(limit, _SECONDS_ONCE_ASKED_TO_STOP)
        # Each has a clock of its own, and perhaps only one was asked to stop.
        return all(self._ranks.all_gather(self.seconds < limit, "agreeing whether to save again"))
