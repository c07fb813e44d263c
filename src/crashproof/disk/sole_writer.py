"""Notice that something else writes a run that this process has locked.

A lock may not reach the other process (a network file system, another mount), and its file may be removed. What the
other one does to the files shows all the same. A second writer is told from a tool (an editor, `sed -i`, `rm`, a
rotation of logs) by the lock and by the records in the files: a tool writes none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import msgspec

from crashproof.disk.journal import Interference, Journal, scan_backwards
from crashproof.disk.lock import Holder, WriterLock
from crashproof.errors import FileUnreadable

__all__ = ["Intrusion", "SoleWriter"]

log = logging.getLogger("crashproof")

_GRACE_SECONDS = 30.0
"""How long an earlier writer may take to notice this one: its heartbeat, and what its file system caches."""


_NUM_NEWEST = 100
"""Lines at the end of a journal that are searched for those of a later attempt."""


class _OfAttempt(msgspec.Struct):
    attempt: int = 0


_attempt_decoder = msgspec.json.Decoder(_OfAttempt)


class Intrusion(msgspec.Struct, frozen=True, kw_only=True):
    """What shows that this process is not the only writer any more."""

    what: str
    """In words, as the end of a sentence."""
    other: Holder | None
    """The process that has the run now; None if nothing names it."""


class SoleWriter:
    """Checks from time to time that nobody else writes; it costs a few system calls, and belongs in the background.

    Of two writers the newer one goes on, the one that `writer.lock` names: it was started on purpose, and the older
    one is what was believed dead.
    """

    def __init__(self, lock: WriterLock, journals: Sequence[Journal], *, attempt: int) -> None:
        self._lock = lock
        self._journals = journals
        self._attempt = attempt
        self._grew_at: float | None = None
        self.altered: dict[Path, Interference] = {}
        """Journals that a tool has edited or removed, as of the last look."""

    def find_intrusion(self, moment: float, *, guard: AbstractContextManager[object]) -> Intrusion | None:
        """What shows another writer; None if this process may go on.

        Args:
            moment: By a steady clock.
            guard: Held while a line is appended.
        """
        self.altered = {}
        other = self._lock.find_other()
        if other is not None:
            return Intrusion(what=f"{self._lock.path.name} names that process", other=other)
        for journal in self._journals:
            if journal.find_interference() is None:
                continue
            with guard:
                found = self._judge(journal, moment)
            if found is not None:
                return found
        return None

    def _judge(self, journal: Journal, moment: float) -> Intrusion | None:
        interference = journal.find_interference()
        if interference is None:
            # A line was being appended.
            return None
        other = self._lock.last_named
        has_foreign_records = interference is Interference.GREW and journal.has_intact_lines_behind()
        if other is not None or (has_foreign_records and self._has_gone_on(moment)):
            return Intrusion(what=f"{journal.path.name} {interference}", other=other)
        if has_foreign_records:
            journal.accept_foreign_lines()
        elif self._is_of_newer_attempt(journal.path):
            return Intrusion(what=f"{journal.path.name} has lines of a newer attempt", other=None)
        else:
            self.altered[journal.path] = Interference.EDITED if interference is Interference.GREW else interference
        return None

    def _is_of_newer_attempt(self, path: Path) -> bool:
        """Whether a later attempt has written one of the last lines under the name of a journal."""
        try:
            newest = list(islice(scan_backwards(path, end=path.stat().st_size), _NUM_NEWEST))
        except (FileNotFoundError, FileUnreadable):
            return False
        return any(_attempt_decoder.decode(each.content).attempt > self._attempt for each in newest)

    def _has_gone_on(self, moment: float) -> bool:
        """Whether another process has been writing for so long that it will not notice this one."""
        if self._grew_at is None:
            self._grew_at = moment
            log.warning(
                "Another process has added lines to %s. They stay. Where it is an earlier writer of this run, it "
                "stops as soon as it sees this process in %s; if it goes on, this one stops in %g s.",
                self._journals[0].path.parent,
                self._lock.path.name,
                _GRACE_SECONDS,
            )
        return moment - self._grew_at > _GRACE_SECONDS
