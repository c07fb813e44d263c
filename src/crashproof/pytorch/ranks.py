"""This process among the others of its run.

`torchrun` starts several processes and tells each its rank. Whatever they decide (when to stop, where to resume,
whether a save has succeeded) is decided by one and told to all, and no wait is without a limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from crashproof.errors import RankLost
from crashproof.tracking.heartbeat import Heartbeat

__all__ = ["AloneRank", "ManyRanks", "Ranks", "joined_ranks"]

ValueT = TypeVar("ValueT")

_ROLL_CALL_SECONDS = 5.0
_SECONDS_BETWEEN_CALLS = 0.05
_SECONDS_BETWEEN_BEATS = 1.0
_BEATS, _DONE = "main/beats", "main/done"
_WORDS_OF_WIRES = ("gloo", "NCCL", "onnection closed by peer", "onnection reset", "imed out waiting")


class Ranks(Protocol):
    """The processes of one training run."""

    rank: int
    num_ranks: int

    @property
    def is_main(self) -> bool:
        """Whether this one keeps the run."""
        ...

    def from_main(self, value: ValueT, what: str) -> ValueT:
        """What the main process has; `what` names the occasion in errors.

        Raises:
            RankLost: another process died, or did not come within the limit.
        """
        ...

    def from_all(self, value: ValueT, what: str) -> list[ValueT]:
        """What each process has, in the order of the ranks; raises what `from_main` does."""
        ...

    def main_first(self, what: str) -> AbstractContextManager[object]:
        """Around work of the main process that takes as long as it takes; the others come out once it is done.

        Raises:
            RankLost: in the others, where the main process has shown no sign of life within the limit.
        """
        ...

    def add_up(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place; on a CUDA device it is queued, and nobody waits for it."""
        ...

    def tell_whether_to_stop(self, wants_to_stop: bool) -> None:
        """Tell the others, once a step; nobody waits for the answer before the next call."""
        ...

    @property
    def is_stop_agreed(self) -> bool:
        """Whether any process wanted to stop, as all know it at this step."""
        ...

    def meeting(self, what: str) -> AbstractContextManager[object]:
        """Around something that all processes do together: where another is lost, the error names it.

        Raises:
            RankLost: another process died, or did not come within the limit.
        """
        ...

    def beside(self) -> Ranks:
        """The same processes, for a thread beside the training: its waits do not mix with the others."""
        ...


class AloneRank:
    """A run of one process: it agrees with itself."""

    rank = 0
    num_ranks = 1
    is_main = True

    def __init__(self) -> None:
        self.is_stop_agreed = False

    def from_main(self, value: ValueT, what: str) -> ValueT:
        """The value itself."""
        return value

    def from_all(self, value: ValueT, what: str) -> list[ValueT]:
        """The value alone."""
        return [value]

    def main_first(self, what: str) -> AbstractContextManager[object]:
        """Nobody waits."""
        return nullcontext()

    def add_up(self, numbers: Tensor) -> Tensor:
        """The numbers themselves."""
        return numbers

    def tell_whether_to_stop(self, wants_to_stop: bool) -> None:
        """Decided at once."""
        self.is_stop_agreed = wants_to_stop

    def meeting(self, what: str) -> AbstractContextManager[object]:
        """Nobody else comes."""
        return nullcontext()

    def beside(self) -> AloneRank:
        """Nobody is waited for."""
        return self


class ManyRanks:
    """A process that `torchrun` started."""

    def __init__(self, store: Store, *, rank: int, num_ranks: int, limit_seconds: float) -> None:
        """Call it on every process in the same order; the default process group exists."""
        self.rank = rank
        self.num_ranks = num_ranks
        self.is_main = rank == 0
        self.is_stop_agreed = False
        self._store = store
        self._limit_seconds = limit_seconds
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit_seconds))
        self._flag = torch.zeros(1)
        self._flag_work: Any = None

    def from_main(self, value: ValueT, what: str) -> ValueT:
        """See `Ranks.from_main`."""
        told = [value if self.is_main else None]
        with self.meeting(what):
            dist.broadcast_object_list(told, src=0, group=self.group)
        return cast(ValueT, told[0])

    def from_all(self, value: ValueT, what: str) -> list[ValueT]:
        """See `Ranks.from_all`."""
        told: list[Any] = [None] * self.num_ranks
        with self.meeting(what):
            dist.all_gather_object(told, value, group=self.group)
        return told

    @contextmanager
    def main_first(self, what: str) -> Iterator[None]:
        """See `Ranks.main_first`."""
        if not self.is_main:
            with self.meeting(what):
                self._wait_for_main(what)
            yield
            return
        beat = Heartbeat(self._show_life, interval_seconds=_SECONDS_BETWEEN_BEATS)
        try:
            yield
        finally:
            beat.stop()
            self._store.set(_DONE, what)

    def add_up(self, numbers: Tensor) -> Tensor:
        """See `Ranks.add_up`."""
        with self.meeting("adding up the losses"):
            dist.all_reduce(numbers)
        return numbers

    def tell_whether_to_stop(self, wants_to_stop: bool) -> None:
        """See `Ranks.tell_whether_to_stop`: what is told at one step is agreed at the next."""
        with self.meeting("agreeing whether to stop"):
            if self._flag_work is not None:
                self._flag_work.wait()
                self.is_stop_agreed = bool(self._flag.item())
            self._flag = torch.tensor([float(wants_to_stop)])
            self._flag_work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self.group, async_op=True)

    def beside(self) -> ManyRanks:
        """See `Ranks.beside`."""
        return ManyRanks(self._store, rank=self.rank, num_ranks=self.num_ranks, limit_seconds=self._limit_seconds)

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """See `Ranks.meeting`."""
        try:
            yield
        except RuntimeError as error:
            if not _is_about_others(error):
                raise
            reason = str(error).splitlines()[0]
            raise RankLost(what, missing=self._missing(), seconds=self._limit_seconds, reason=reason) from error

    def _show_life(self) -> None:
        self._store.add(_BEATS, 1)

    def _wait_for_main(self, what: str) -> None:
        num_beats, heard_at = -1, time.monotonic()
        while not self._store.check([_DONE]):
            newest = self._store.add(_BEATS, 0)
            if newest != num_beats:
                num_beats, heard_at = newest, time.monotonic()
            elif time.monotonic() - heard_at > self._limit_seconds:
                raise RankLost(what, missing=[0], seconds=self._limit_seconds, reason="it shows no sign of life")
            time.sleep(_SECONDS_BETWEEN_CALLS)

    def _missing(self) -> list[int]:
        """A roll call among those who have noticed: the ranks that do not answer it."""
        others = [rank for rank in range(self.num_ranks) if rank != self.rank]
        ends_at = time.monotonic() + min(_ROLL_CALL_SECONDS, self._limit_seconds)
        try:
            self._store.set(f"lost/{self.rank}", "noticed")
            while others and time.monotonic() < ends_at:
                others = [rank for rank in others if not self._store.check([f"lost/{rank}"])]
                time.sleep(_SECONDS_BETWEEN_CALLS)
        except RuntimeError:
            # The store went with the process that kept it.
            return []
        return others


def _is_about_others(error: RuntimeError) -> bool:
    """Whether an error came from the wires; gloo's are told by their words alone."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _WORDS_OF_WIRES)


@contextmanager
def joined_ranks(
    *, device_type: str, limit_seconds: float, environment: Mapping[str, str] = os.environ
) -> Iterator[AloneRank | ManyRanks]:
    """This process among the others: alone, unless `torchrun` says otherwise.

    Raises:
        RankLost: the others did not come within the limit.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield AloneRank()
        return
    limit = timedelta(seconds=limit_seconds)
    if device_type == "cuda":
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
    try:
        store, rank, num_ranks = next(rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        # torchrun may keep its store over restarts, with what the processes before have left in it.
        store = PrefixStore(f"{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}/{num_ranks}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=num_ranks,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        raise RankLost("meeting the other processes", missing=[], seconds=limit_seconds, reason=str(error)) from error
    try:
        yield ManyRanks(store, rank=rank, num_ranks=num_ranks, limit_seconds=limit_seconds)
    finally:
        dist.destroy_process_group()
