"""The askers of a job: one on each machine, as long as there are questions."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError
from crashproof.teacher.jobs.ray_cluster.asker import Asker, AskerSetup, Ended, Opened
from crashproof.teacher.jobs.ray_cluster.asking import Asking
from crashproof.teacher.jobs.ray_cluster.cluster import ActorDied, ActorUnfit, Cluster, Machine
from crashproof.teacher.jobs.ray_cluster.remote_asker import RemoteAsker
from crashproof.teacher.jobs.ray_cluster.shares import most_shares, shares_of

__all__ = ["Crew"]

log = logging.getLogger("crashproof")

_CPUS_OF_ASKER = 0.01
"""It waits for the network; so little is reserved that a machine may do other work, and another job's asking."""
_MOST_LOSSES = 3
"""Askers that a machine may lose in a row before it is left alone."""
_SILENT_SECONDS = 5.0
"""Waiting longer for the first asker is worth a word."""
_GIVE_UP_SECONDS = 10.0


class Crew:
    """Keeps an asker on each machine, also on those that join later, and replaces those that are lost."""

    def __init__(
        self,
        cluster: Cluster,
        asking: Asking,
        setup: AskerSetup,
        *,
        check: Callable[[Machine, Opened], None],
        on_news: Callable[[], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Start nothing yet.

        Args:
            cluster: Where to ask from; it has been joined.
            asking: The questions.
            setup: What each asker has to know; its limits are divided.
            check: Raises ConfigError where a machine does not fit the job.
            on_news: Called after news was taken in.
            clock: Source of time.
        """
        self._cluster = cluster
        self._asking = asking
        self._setup = setup
        self._check = check
        self._on_news = on_news
        self._clock = clock
        self._posts: dict[str, asyncio.Task[None]] = {}
        """One for each machine that has an asker, or will have."""
        self._askers: list[RemoteAsker] = []
        """Those that are ready."""
        self._losses: Counter[str] = Counter()
        """By machine, since an asker there has ended a question."""
        self._last_death: ActorDied | None = None
        self._is_dismissed = False
        self._missing = ""
        """What the first asker waits for, in words; empty once there is one."""
        self._missing_since = 0.0

    async def man_machines(self) -> None:
        """Start an asker on each machine that has none; says so if there has been none for a while.

        Raises:
            ConfigError: there are machines, and each has lost too many askers.
        """
        found = await self._cluster.machines()
        sound = [machine for machine in found if self._losses[machine.node_id] < _MOST_LOSSES]
        if found and not sound and not self._posts:
            raise ConfigError(
                f"No machine of the Ray cluster ({len(found)}) can run an asker: {self._last_death}.",
                hint="crashproof[ray] has to be installed on each. Ray's logs on these machines may tell more.",
            )
        num_places = most_shares(self._setup.settings.limits) - len(self._posts)
        free = [machine for machine in sound if machine.node_id not in self._posts]
        for machine in free[: max(0, num_places)]:
            self._posts[machine.node_id] = asyncio.create_task(self._man(machine))
        await self._tell_what_is_waited_for(found)

    async def dismiss(self, give_up: asyncio.Event) -> None:
        """Wait for the answers in flight, which are paid for, until they are given up; then end all askers."""
        self._is_dismissed = True
        ready = {asker.machine.node_id for asker in self._askers}
        for node_id, post in self._posts.items():
            if node_id not in ready:
                post.cancel()
        for asker in self._askers:
            asker.stop(waits=True)
        posts = set(self._posts.values())
        giving_up = asyncio.create_task(give_up.wait())
        while not giving_up.done() and (still_open := [post for post in posts if not post.done()]):
            await asyncio.wait([*still_open, giving_up], return_when=asyncio.FIRST_COMPLETED)
        if giving_up.done():
            await self._give_up(posts)
        giving_up.cancel()
        await asyncio.gather(*posts, return_exceptions=True)

    async def _give_up(self, posts: Collection[asyncio.Task[None]]) -> None:
        for asker in self._askers:
            asker.stop(waits=False)
        if posts:
            await asyncio.wait(posts, timeout=_GIVE_UP_SECONDS)
        for post in posts:
            post.cancel()

    async def _man(self, machine: Machine) -> None:
        """Ask from one machine until all is over, or its asker is lost."""
        asker = RemoteAsker(machine, self._cluster.start(Asker, machine, num_cpus=_CPUS_OF_ASKER))
        try:
            self._check(machine, await asker.open(self._setup))
            self._askers.append(asker)
            self._divide_limits()
            await self._ask_through(asker)
            await asker.close()
        except ActorDied as death:
            self._note_loss(asker, death)
        except Exception as error:  # The machine does not fit, or a bug: another asker would fare alike.
            self._asking.fail(error)
        finally:
            del self._posts[machine.node_id]
            self._asking.put_back(asker.rows.values())
            asker.kill()
            if asker in self._askers:
                self._askers.remove(asker)
                self._divide_limits()

    async def _ask_through(self, asker: RemoteAsker) -> None:
        while not self._is_dismissed or asker.rows:
            rows = [] if self._is_dismissed else self._asking.take(asker.num_wanted)
            for news in await asker.exchange(rows):
                if isinstance(news, Ended):
                    self._asking.note_end(asker.rows.pop(news.number), news)
                else:
                    self._asking.note_failure(news)
            self._on_news()

    def _divide_limits(self) -> None:
        if self._askers:
            shares = shares_of(self._setup.settings.limits, len(self._askers))
            for asker, share in zip(self._askers, shares, strict=True):
                asker.limit(share)

    def _note_loss(self, asker: RemoteAsker, death: ActorDied) -> None:
        node_id = asker.machine.node_id
        before = 0 if asker.has_ended_any else self._losses[node_id]
        self._losses[node_id] = _MOST_LOSSES if isinstance(death, ActorUnfit) else before + 1
        self._last_death = death
        questions = f" Its {len(asker.rows)} open questions are asked by others." if asker.rows else ""
        left_alone = " That machine is left alone now." if self._losses[node_id] >= _MOST_LOSSES else ""
        log.warning("Lost the asker on %s: %s.%s%s", asker.machine.name, death, questions, left_alone)

    async def _tell_what_is_waited_for(self, found: Sequence[Machine]) -> None:
        now = self._clock.steady()
        missing = "" if self._askers else await self._what_is_missing(found)
        if missing != self._missing:
            self._missing, self._missing_since = missing, now
        if missing and now - self._missing_since >= _SILENT_SECONDS:
            log.warning("Nothing is asked yet: waiting for %s.", missing)
            # Once is enough, until something else is missing.
            self._missing_since = math.inf

    async def _what_is_missing(self, found: Sequence[Machine]) -> str:
        if not found:
            return "a machine with CPUs to join the Ray cluster"
        in_use, total = await self._cluster.cpus_in_use()
        if total - in_use < _CPUS_OF_ASKER:
            return f"a free CPU, since all {total:g} of the Ray cluster are reserved by others"
        return f"the askers to start on {len(found)} machines of the Ray cluster"
