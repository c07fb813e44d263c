"""Compare what the processes of a run were started with, before they join.

Each process leaves a report in `torchrun`'s store, the main one judges all of them, and the others read its verdict.
No process group is needed: another device or time limit on one rank would break one, or make it wait.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

import msgspec
from torch.distributed.distributed_c10d import Store

from crashproof.errors import CrashproofError, RankFailed, RankLost, RanksDisagree
from crashproof.formatting import as_text
from crashproof.pytorch.exit_codes import EXIT_ERROR
from crashproof.pytorch.fresh_store import RanksMissing, connect
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts, StopRequested
from crashproof.pytorch.ranks.bounded_store import call_within
from crashproof.rules.agreement.verdict import Finding, Report, Verdict, verdict_on
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["ConnectToStore", "StartMeeting"]

log = logging.getLogger("crashproof")

_SAME_FOR_ALL = "Give all processes the same config, code and libraries; nothing was trained."

_REPORT, _VERDICT, _READ = "meeting/report", "meeting/verdict", "meeting/read"
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.02, 0.5
_TELLING_SECONDS = 60.0
"""Processes import for that long on a busy host, and whoever has failed is not told a limit."""
_LEAVING_SECONDS = 5.0
_WHAT = "comparing what the processes were started with"


class ConnectToStore(Protocol):
    """`connect`, or what stands for it in a test."""

    def __call__(self, *, limit_seconds: float, environment: Mapping[str, str]) -> tuple[Store, int, int]:
        """The store, this process's rank, and how many ranks there are."""
        ...


class StartMeeting:
    """The processes that `torchrun` started, before they join; without it there is nobody to meet."""

    def __init__(
        self,
        interrupts: Interrupts,
        *,
        environment: Mapping[str, str] = os.environ,
        connect_to_store: ConnectToStore = connect,
    ) -> None:
        self._interrupts = interrupts
        self._environment = environment
        self._connect_to_store = connect_to_store
        self._is_alone = int(environment.get("WORLD_SIZE", "1")) == 1

    @contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """A context for what comes before `agreement`: an error in it is told to the other processes too."""
        try:
            yield
        except CrashproofError as error:
            if not self._is_alone:
                self._tell(error)
            raise

    @contextmanager
    def agreement(self, describe: Callable[[], dict[str, str]], *, limit_seconds: float) -> Iterator[None]:
        """A context that is entered once all processes have described themselves, and alike.

        The processes join inside it: they need the store, which the main process may host.

        Raises:
            RanksDisagree: Descriptions differ; names what does, the values and the ranks.
            RankFailed: Another process cannot start; says why.
            RankLost: Another process has not arrived within the limit.
            StopRequested: A stop was requested before or during the wait.
        """
        if self._is_alone:
            # A stop may have been asked for while PyTorch was imported.
            self._interrupts.raise_if_requested()
            yield
            return
        description = {as_text(name): as_text(value) for name, value in describe().items()}
        report = Report(host=socket.gethostname(), description=description)
        try:
            table, verdict = self._settle(report, limit_seconds)
        except RanksMissing as error:
            reason = "no report has arrived"
            raise RankLost(_WHAT, missing=error.missing, seconds=limit_seconds, reason=reason) from error
        except (RuntimeError, TimeoutError, ValueError) as error:
            reason = (str(error) or "the store does not answer").splitlines()[0]
            raise RankLost(_WHAT, missing=[], seconds=limit_seconds, reason=reason) from error
        _require_agreement(verdict, limit_seconds)
        yield
        # Until here the store is needed, which ends with its last connection.
        del table

    def _tell(self, failure: CrashproofError) -> None:
        """Tell the others, which would wait for this process; its own error says everything here."""
        log.info("This process cannot start. Telling the others, for at most %.0f s.", _TELLING_SECONDS)
        reason = as_text(without_secrets(str(failure)))
        report = Report(host=socket.gethostname(), failure=reason, may_pass=failure.may_pass)
        # Nobody may be there to be told.
        with suppress(RanksMissing, RuntimeError, StopRequested, TimeoutError, ValueError):
            self._settle(report, _TELLING_SECONDS)

    def _settle(self, report: Report, limit_seconds: float) -> tuple[_Table, Verdict]:
        """Leave a report, and return the verdict, and what keeps the store."""

        def settle() -> tuple[_Table, Verdict]:
            table = self._sit_down(limit_seconds)
            return table, table.settle(report, self._interrupts)

        # After a network cut no call of the store returns.
        longest_seconds = limit_seconds + (_TELLING_SECONDS if report.failure else 2 * _LEAVING_SECONDS)
        return call_within(longest_seconds, settle)

    def _sit_down(self, limit_seconds: float) -> _Table:
        store, rank, num_ranks = self._connect_to_store(limit_seconds=limit_seconds, environment=self._environment)
        return _Table(store, rank=rank, num_ranks=num_ranks, limit_seconds=limit_seconds)


class _Table:
    """The reports and the verdict in the store."""

    def __init__(self, store: Store, *, rank: int, num_ranks: int, limit_seconds: float) -> None:
        self.rank = rank
        self._store = store
        self._num_ranks = num_ranks
        # The verdict on those that are missing at the limit comes a moment after it.
        self._ends_at = time.monotonic() + limit_seconds + (0.0 if rank == 0 else _LEAVING_SECONDS)

    def settle(self, report: Report, interrupts: Interrupts) -> Verdict:
        """Leave a report, and return the verdict on all of them."""
        self._leave(report)
        try:
            verdict = self._judge(report, interrupts) if self.rank == 0 else self._read_verdict(interrupts)
        except StopRequested as stop:
            self._leave_stopped(Report(host=report.host, failure=f"It was asked to stop ({stop}).", may_pass=True))
            raise
        self._store.add(_READ, 1)
        if verdict.finding is not Finding.AGREED:
            # Whoever ends first may take the store, or torchrun's other processes, along.
            num_missing = len(verdict.ranks) if verdict.finding is Finding.MISSING else 0
            self._wait_for_readers(
                self._num_ranks - num_missing, seconds=_TELLING_SECONDS if report.failure else _LEAVING_SECONDS
            )
        return verdict

    def _leave(self, report: Report) -> None:
        self._store.set(f"{_REPORT}/{self.rank}", msgspec.json.encode(report).decode())

    def _leave_stopped(self, report: Report) -> None:
        self._leave(report)
        self._store.add(_READ, 1)
        if self.rank == 0:
            self._announce({0: report})

    def _judge(self, own: Report, interrupts: Interrupts) -> Verdict:
        reports = {0: own}
        for _ in self._moments(interrupts):
            new = [rank for rank in range(self._num_ranks) if rank not in reports and self._has(rank)]
            reports |= {rank: self._report_of(rank) for rank in new}
            if len(reports) == self._num_ranks or any(each.failure for each in reports.values()):
                break
        return self._announce(reports)

    def _announce(self, reports: Mapping[int, Report]) -> Verdict:
        verdict = verdict_on(reports, num_ranks=self._num_ranks)
        self._store.set(_VERDICT, msgspec.json.encode(verdict).decode())
        return verdict

    def _read_verdict(self, interrupts: Interrupts) -> Verdict:
        for _ in self._moments(interrupts, is_over=lambda: bool(self._store.check([_VERDICT]))):
            pass
        if not self._store.check([_VERDICT]):
            return Verdict(finding=Finding.MISSING, ranks=[0], may_pass=True)
        return msgspec.json.decode(self._store.get(_VERDICT), type=Verdict)

    def _has(self, rank: int) -> bool:
        return bool(self._store.check([f"{_REPORT}/{rank}"]))

    def _report_of(self, rank: int) -> Report:
        return msgspec.json.decode(self._store.get(f"{_REPORT}/{rank}"), type=Report)

    def _wait_for_readers(self, num_readers: int, *, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while self._store.add(_READ, 0) < num_readers and time.monotonic() < ends_at:
            time.sleep(_SHORTEST_POLL_SECONDS)

    def _moments(self, interrupts: Interrupts, is_over: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Moments to look again, rarer and rarer, up to the limit; raises `StopRequested` where one is over."""
        pause_seconds = _SHORTEST_POLL_SECONDS
        while not is_over() and time.monotonic() < self._ends_at:
            yield
            interrupts.raise_if_requested()
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, _LONGEST_POLL_SECONDS)


def _require_agreement(verdict: Verdict, limit_seconds: float) -> None:
    if verdict.finding is Finding.FAILED:
        what = "preparing to start"
        exit_code = EXIT_PREEMPTED if verdict.may_pass else EXIT_ERROR
        raise RankFailed(verdict.ranks[0], what=what, reason=verdict.words, exit_code=exit_code)
    if verdict.finding is Finding.MISSING:
        raise RankLost(_WHAT, missing=verdict.ranks, seconds=limit_seconds, reason="no report has arrived")
    if verdict.finding is Finding.DIFFERENT:
        raise RanksDisagree(
            f"The processes of this run were started with different inputs: {verdict.words}.", hint=_SAME_FOR_ALL
        )
