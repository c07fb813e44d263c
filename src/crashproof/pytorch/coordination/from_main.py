"""What the main process makes for all processes, however long that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch.distributed as dist

from crashproof.errors import RankFailed, RankLost
from crashproof.pytorch.exit_codes import exit_code_of
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.pytorch.ranks import DistributedRanks, Ranks
from crashproof.rules.secrets.texts import without_secrets
from crashproof.threads import run_or_submit

__all__ = ["SECONDS_BETWEEN_LOOKS", "FromMain", "is_raised_by_all"]

PartT = TypeVar("PartT")
MessageT = TypeVar("MessageT")

SECONDS_BETWEEN_LOOKS = 0.5
"""How often the main process tells the others that it is not ready yet."""
_MARK = "_is_raised_by_all"


@dataclass(frozen=True, slots=True)
class _Ready(Generic[PartT]):
    part: PartT


@dataclass(frozen=True, slots=True)
class _NotYet:
    pass


@dataclass(frozen=True, slots=True)
class _Failed:
    reason: str
    exit_code: int


class FromMain:
    """Hands out what the main process makes. Every process calls the same methods in the same order.

    While the main process is not ready, it says so twice a second in a collective operation. So the wait may be
    longer than the limit of one operation, a process that dies is noticed, and all hear of one that is asked to stop.
    """

    def __init__(self, ranks: Ranks, interrupts: Interrupts) -> None:
        self._ranks = ranks
        self._interrupts = interrupts

    def receive(self, look: Callable[[], Sequence[PartT] | None], what: str) -> PartT:
        """This process's part of what `look` returns on the main process; `what` names the activity in errors.

        `look` returns a part for each rank, or None while it is not ready; it waits for `SECONDS_BETWEEN_LOOKS` at
        most. Other processes do not call it.

        Raises:
            Exception: On the main process, whatever `look` raises.
            RankFailed: On the others, if it did.
            StopRequested: A process was asked to stop during the wait; on all.
            RankLost: Another process died, or did not respond within the limit.
        """
        while True:
            message = self._exchange(look, what)
            if isinstance(message, _Ready):
                return message.part
            if any(self._ranks.all_gather(self._interrupts.is_requested, what)):
                raise StopRequested

    def wait_for(self, work: Callable[[], None], what: str) -> None:
        """Wait until the main process has done some work, also if a stop was requested; raises like `receive`."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="crashproof-wait") as pool:
            look = _looks(run_or_submit(pool, work) if self._ranks.is_main else Future(), self._ranks.num_ranks)
            while not isinstance(self._exchange(lambda: next(look), what), _Ready):
                pass

    def _exchange(self, look: Callable[[], Sequence[PartT] | None], what: str) -> _Ready[PartT] | _NotYet:
        """One look, and what it has found."""
        if not self._ranks.is_main:
            message: _Ready[PartT] | _NotYet | _Failed = _scatter(self._ranks, None, what)
            if isinstance(message, _Failed):
                raise _mark(RankFailed(0, what=what, reason=message.reason, exit_code=message.exit_code))
            return message
        try:
            parts = look()
        except Exception as error:
            # Where the others cannot hear of it, this process alone knows what went wrong.
            with suppress(RankLost):
                failed = _Failed(without_secrets(f"{error}") or type(error).__name__, exit_code_of(error))
                _scatter(self._ranks, [failed] * self._ranks.num_ranks, what)
                _mark(error)
            raise
        found: list[_Ready[PartT] | _NotYet] = [_NotYet()] * self._ranks.num_ranks
        if parts is not None:
            found = [_Ready(part) for part in parts]
        return _scatter(self._ranks, found, what)


def is_raised_by_all(error: BaseException) -> bool:
    """Whether all processes raise an error at the same moment, so that collective operations may follow."""
    return getattr(error, _MARK, False)


def _mark(error: Exception) -> Exception:
    setattr(error, _MARK, True)
    return error


def _looks(work: Future[None], num_ranks: int) -> Iterator[list[None] | None]:
    while not wait([work], timeout=SECONDS_BETWEEN_LOOKS).done:
        yield None
    work.result()
    yield [None] * num_ranks


def _scatter(ranks: Ranks, messages: Sequence[MessageT] | None, what: str) -> MessageT:
    """The message of the main process for this one; it alone has `messages`, one for each rank."""
    if not isinstance(ranks, DistributedRanks):
        assert messages is not None, "the only process is the main one"
        return messages[0]
    received: list[MessageT] = [cast(MessageT, None)]
    with ranks.collective(what):
        dist.scatter_object_list(received, None if messages is None else list(messages), src=0, group=ranks.group)
    return received[0]
