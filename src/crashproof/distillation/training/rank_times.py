"""Find out which rank is slow."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

import torch

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.distillation.training.strategy import Strategy
from crashproof.medians import median
from crashproof.pytorch.own_time import CudaMarks, HostMarks, OwnTime
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.step_timer import NoStepTimer, StepTimer
from crashproof.records.rank_times import RankTime, RankTimes
from crashproof.rules.rank_times.cadence import FIRST_COMPARISON, ReportCadence, steps_until_comparison
from crashproof.rules.rank_times.comparison import compare_ranks

__all__ = ["RankComparison", "choose_timer"]

_MOST_STEPS = 1000


class RankComparison:
    """Compares the own work of all ranks now and then, in a collective operation of its own.

    Every process calls it after each step. About every half minute they exchange what they have measured; the main
    one reports what `ReportCadence` lets through.
    """

    def __init__(
        self,
        ranks: Ranks,
        timer: StepTimer,
        *,
        report: Callable[[RankTimes], None],
        clock: Clock = SYSTEM_CLOCK,
        host: str | None = None,
    ) -> None:
        self._ranks = ranks
        self._timer = timer
        self._report = report
        self._clock = clock
        self._host = socket.gethostname() if host is None else host
        self._cadence = ReportCadence()
        self._num_steps = 0
        self._next_comparison = FIRST_COMPARISON
        self._stepped_at = clock.steady()
        self._step_seconds: deque[float] = deque(maxlen=_MOST_STEPS)
        """Of whole steps, by the host's clock."""

    def after_step(self, step: int) -> None:
        """Note that a step is done; compare, if it is time.

        Raises:
            RankLost: Another process died, or did not take part within the limit.
        """
        if self._ranks.num_ranks == 1:
            return
        now = self._clock.steady()
        self._step_seconds.append(now - self._stepped_at)
        self._stepped_at = now
        self._num_steps += 1
        if self._num_steps == 1:
            # It warms up and compiles.
            self._timer.take()
            self._step_seconds.clear()
        if self._num_steps == self._next_comparison:
            self._compare(step, now)

    def _compare(self, step: int, now: float) -> None:
        seconds = self._timer.take()
        own = (self._host, len(seconds), median(seconds or [0.0]), max(seconds, default=0.0))
        whole = median(self._step_seconds)
        self._step_seconds.clear()
        gathered = self._ranks.all_gather((own, whole), "comparing step times")
        step_seconds = gathered[0][1]
        self._next_comparison += steps_until_comparison(step_seconds)
        measured = [
            RankTime(rank=rank, host=host, seconds=usual, most_seconds=most)
            for rank, ((host, num_steps, usual, most), _) in enumerate(gathered)
            if num_steps
        ]
        if not self._ranks.is_main or len(measured) < self._ranks.num_ranks:
            # On a device, no step may have passed yet.
            return
        times = compare_ranks(measured, step=step, num_steps=gathered[0][0][1], step_seconds=step_seconds)
        if self._cadence.is_due(times, now=now):
            self._report(times)


def choose_timer(strategy: Strategy, device: torch.device, ranks: Ranks) -> StepTimer:
    """The timer of a process's own work on this device."""
    if ranks.num_ranks == 1:
        return NoStepTimer()
    own_time: OwnTime[float] | OwnTime[torch.cuda.Event]
    own_time = OwnTime(CudaMarks()) if device.type == "cuda" else OwnTime(HostMarks())
    return strategy.timer(own_time)
