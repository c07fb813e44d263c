"""One pass over the questions of a job, from all machines of a cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError
from crashproof.teacher.jobs.engine import QUESTIONS_PER_REQUEST, EngineResult
from crashproof.teacher.jobs.outcomes import Outcomes
from crashproof.teacher.jobs.ray_cluster.asker import AskerSetup, Opened, version_here
from crashproof.teacher.jobs.ray_cluster.asking import Asking
from crashproof.teacher.jobs.ray_cluster.cluster import Cluster, Machine
from crashproof.teacher.jobs.ray_cluster.crew import Crew
from crashproof.teacher.jobs.ray_cluster.feed import Feed
from crashproof.teacher.jobs.ray_cluster.messages import ClusterTask, Progress
from crashproof.teacher.jobs.ray_cluster.store_file import store_file_of
from crashproof.teacher.jobs.stop_signals import StopSignals
from crashproof.teacher.shared_store.store import SharedStore

__all__ = ["ask_all"]

log = logging.getLogger("crashproof")

_SECONDS_BETWEEN_LOOKS = 0.5
"""At the machines of the cluster."""
_JOIN_SECONDS = 5.0
"""Waiting longer for the cluster is worth a word."""


async def ask_all(
    task: ClusterTask,
    cluster: Cluster,
    orders: StopSignals,
    *,
    tell: Callable[[Progress], None],
    clock: Clock = SYSTEM_CLOCK,
) -> EngineResult:
    """Ask all questions of a task from the machines of a cluster.

    Raises:
        ConfigError: no cluster is running, or it does not fit.
        TeacherError: no question can be answered.
        DiskFull, StoreUnavailable: paid answers are stored, but no further one can be.
    """
    if not await _join(cluster, orders.stop):
        return EngineResult(is_stopped=True)
    try:
        with SharedStore.open(task.store_url, account=task.account) as store:
            return await _Pass(task, cluster, store, orders, tell=tell, clock=clock).run()
    finally:
        await cluster.leave()


async def _join(cluster: Cluster, stop: asyncio.Event) -> bool:
    """Join the cluster; False if the job was stopped first."""
    joining, stopping = asyncio.create_task(cluster.join()), asyncio.create_task(stop.wait())
    both = {joining, stopping}
    done, _ = await asyncio.wait(both, timeout=_JOIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if not done:
        log.warning("Nothing is asked yet: waiting for the head of the Ray cluster to respond.")
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not joining.done():
        joining.cancel()
        return False
    await joining
    return True


class _Pass:
    """The parts of one pass, and their order."""

    def __init__(
        self,
        task: ClusterTask,
        cluster: Cluster,
        store: SharedStore,
        orders: StopSignals,
        *,
        tell: Callable[[Progress], None],
        clock: Clock,
    ) -> None:
        self._orders = orders
        self._tell = tell
        self._asked = EngineResult()
        self._outcomes = Outcomes.for_settings(
            task.settings, self._asked, count_answers=lambda: store.spending().answers
        )
        most_waiting = QUESTIONS_PER_REQUEST * task.settings.limits.concurrency
        feed = Feed(task.job.questions(), most_waiting=most_waiting)
        self._asking = Asking(feed, self._outcomes, clock=clock)
        check = _Checks(task.store_url).check
        self._crew = Crew(cluster, self._asking, _setup_for(task), check=check, on_news=self._report, clock=clock)

    async def run(self) -> EngineResult:
        """See `ask_all`."""
        try:
            await self._ask()
        finally:
            self._asking.stop()
            await self._crew.dismiss(self._orders.give_up)
            self._report()
        self._outcomes.finish()
        if self._outcomes.fatal is not None:
            raise self._outcomes.fatal
        self._asked.is_stopped = self._orders.stop.is_set() and not self._asking.is_complete
        return self._asked

    async def _ask(self) -> None:
        """Until all is asked, or nothing more is to be asked."""
        stopping = asyncio.create_task(self._orders.stop.wait())
        ending = asyncio.create_task(self._asking.is_over.wait())
        # Apart, since it waits for the head of the cluster, which may be gone; the askers work on without it.
        manning = asyncio.create_task(self._keep_manning())
        await asyncio.wait({stopping, ending, manning}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, ending, manning):
            task.cancel()
        if not (stopping.done() or ending.done()):
            manning.result()

    async def _keep_manning(self) -> NoReturn:
        while True:
            await self._crew.man_machines()
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    def _report(self) -> None:
        # Each of them once, so that a million of them are held nowhere.
        reasons = dict(self._asked.reasons)
        self._asked.reasons.clear()
        failures = self._asking.take_failures()
        self._tell(Progress(num_finished=self._outcomes.num_finished, failures=failures, reasons=reasons))


def _setup_for(task: ClusterTask) -> AskerSetup:
    return AskerSetup(
        form=task.job.form,
        keeps_truncated=task.job.keeps_truncated,
        settings=task.settings,
        store_url=task.store_url,
        account=task.account,
    )


class _Checks:
    """What every machine must have in common with this one."""

    def __init__(self, store_url: str) -> None:
        self._store_file = store_file_of(store_url)
        self._version = version_here()

    def check(self, machine: Machine, opened: Opened) -> None:
        """Raises ConfigError where it has another version or another store."""
        if opened.version != self._version:
            raise ConfigError(
                f"{machine.name} has crashproof {opened.version}, and this machine {self._version}.",
                hint="Install the same version on all machines of the cluster.",
            )
        if opened.store_file != self._store_file:
            raise ConfigError(
                f"The --store is a SQLite file, and {machine.name} finds another file under its name.",
                hint="Use a database server: --store postgresql+psycopg://user:password@host/database.",
            )
