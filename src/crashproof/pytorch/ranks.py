"""Communication between the processes of a run.

`torchrun` starts several processes and gives each its rank. All of them take the same decisions (when to stop, where
to resume, whether a save has succeeded), and every wait has a time limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from crashproof.errors import RankLost
from crashproof.tracking.heartbeat import Heartbeat

__all__ = ["DistributedRanks", "Ranks", "SingleRank", "connect", "join_ranks"]

ValueT = TypeVar("ValueT")

_ROLL_CALL_SECONDS = 5.0
_POLL_SECONDS = 0.05
_HEARTBEAT_SECONDS = 1.0
_BEATS, _DONE = "main/beats", "main/done"
_NETWORK_WORDS = ("gloo", "NCCL", "onnection closed by peer", "onnection reset", "imed out waiting")


class Ranks(Protocol):
    """The processes of one training run."""

    rank: int
    num_ranks: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        ...

    def broadcast(self, value: ValueT, what: str) -> ValueT:
        """The value of the main process; `what` names the activity in errors.

        Raises:
            RankLost: Another process died, or did not take part within the limit.
        """
        ...

    def all_gather(self, value: ValueT, what: str) -> list[ValueT]:
        """The values of all processes in the order of the ranks; raises like `broadcast`."""
        ...

    def main_process_first(self, what: str) -> AbstractContextManager[object]:
        """A context in which the main process works for any time; the others enter it once that work is done.

        Raises:
            RankLost: In the others, if the main process sent no heartbeat within the limit.
        """
        ...

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place; asynchronous on a CUDA device."""
        ...

    def share_stop_request(self, wants_to_stop: bool) -> None:
        """Tell the others once per step; the result arrives with the next call."""
        ...

    @property
    def is_stop_agreed(self) -> bool:
        """Whether any process wanted to stop; the same on all processes at the same step."""
        ...

    def collective(self, what: str) -> AbstractContextManager[object]:
        """A context for collective operations; if another process is lost, the error names it.

        Raises:
            RankLost: Another process died, or did not take part within the limit.
        """
        ...

    def for_background_thread(self) -> Ranks:
        """The same processes for a background thread: its collectives do not mix with the training's."""
        ...


class SingleRank:
    """The only process of a run."""

    rank = 0
    num_ranks = 1
    is_main = True

    def __init__(self) -> None:
        self.is_stop_agreed = False

    def broadcast(self, value: ValueT, what: str) -> ValueT:
        """The value itself."""
        return value

    def all_gather(self, value: ValueT, what: str) -> list[ValueT]:
        """A list of the value."""
        return [value]

    def main_process_first(self, what: str) -> AbstractContextManager[object]:
        """A null context: there is nothing to wait for."""
        return nullcontext()

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The numbers unchanged."""
        return numbers

    def share_stop_request(self, wants_to_stop: bool) -> None:
        """Decide at once."""
        self.is_stop_agreed = wants_to_stop

    def collective(self, what: str) -> AbstractContextManager[object]:
        """A null context: there is no other process."""
        return nullcontext()

    def for_background_thread(self) -> SingleRank:
        """This object."""
        return self


class DistributedRanks:
    """A process that `torchrun` started."""

    def __init__(self, store: Store, *, rank: int, num_ranks: int, limit_seconds: float) -> None:
        """Create it on all processes in the same order, after the default process group."""
        self.rank = rank
        self.num_ranks = num_ranks
        self.is_main = rank == 0
        self.is_stop_agreed = False
        self._store = store
        self._limit_seconds = limit_seconds
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit_seconds))
        self._flag = torch.zeros(1)
        self._flag_work: dist.Work | None = None

    def broadcast(self, value: ValueT, what: str) -> ValueT:
        """See `Ranks.broadcast`."""
        values = [value]
        with self.collective(what):
            dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def all_gather(self, value: ValueT, what: str) -> list[ValueT]:
        """See `Ranks.all_gather`."""
        values = [value] * self.num_ranks
        with self.collective(what):
            dist.all_gather_object(values, value, group=self.group)
        return values

    @contextmanager
    def main_process_first(self, what: str) -> Iterator[None]:
        """See `Ranks.main_process_first`."""
        if not self.is_main:
            with self.collective(what):
                self._wait_for_main(what)
            yield
            return
        beat = Heartbeat(self._beat, interval_seconds=_HEARTBEAT_SECONDS)
        try:
            yield
        finally:
            beat.stop()
            self._store.set(_DONE, what)

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """See `Ranks.all_reduce`."""
        with self.collective("summing the losses"):
            dist.all_reduce(numbers)
        return numbers

    def share_stop_request(self, wants_to_stop: bool) -> None:
        """See `Ranks.share_stop_request`: a request of one step is agreed at the next."""
        with self.collective("agreeing whether to stop"):
            if self._flag_work is not None:
                self._flag_work.wait()
                self.is_stop_agreed = bool(self._flag.item())
            self._flag = torch.tensor([float(wants_to_stop)])
            self._flag_work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self.group, async_op=True)

    def for_background_thread(self) -> DistributedRanks:
        """See `Ranks.for_background_thread`."""
        return DistributedRanks(
            self._store, rank=self.rank, num_ranks=self.num_ranks, limit_seconds=self._limit_seconds
        )

    @contextmanager
    def collective(self, what: str) -> Iterator[None]:
        """See `Ranks.collective`."""
        try:
            yield
        except RuntimeError as error:
            if not _is_network_error(error):
                raise
            reason = str(error).splitlines()[0]
            raise RankLost(what, missing=self._missing(), seconds=self._limit_seconds, reason=reason) from error

    def _beat(self) -> None:
        self._store.add(_BEATS, 1)

    def _wait_for_main(self, what: str) -> None:
        num_beats, heard_at = -1, time.monotonic()
        while not self._store.check([_DONE]):
            newest = self._store.add(_BEATS, 0)
            if newest != num_beats:
                num_beats, heard_at = newest, time.monotonic()
            elif time.monotonic() - heard_at > self._limit_seconds:
                raise RankLost(what, missing=[0], seconds=self._limit_seconds, reason="it sent no heartbeat")
            time.sleep(_POLL_SECONDS)

    def _missing(self) -> list[int]:
        """The ranks that do not report to a roll call of those that noticed the failure."""
        others = [rank for rank in range(self.num_ranks) if rank != self.rank]
        ends_at = time.monotonic() + min(_ROLL_CALL_SECONDS, self._limit_seconds)
        try:
            self._store.set(f"lost/{self.rank}", "noticed")
            while others and time.monotonic() < ends_at:
                others = [rank for rank in others if not self._store.check([f"lost/{rank}"])]
                time.sleep(_POLL_SECONDS)
        except RuntimeError:
            # The process that hosted the store is gone.
            return []
        return others


def _is_network_error(error: RuntimeError) -> bool:
    """Whether an error came from the network; gloo's can only be recognized by their words."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _NETWORK_WORDS)


def connect(*, limit_seconds: float, environment: Mapping[str, str] = os.environ) -> tuple[Store, int, int]:
    """Connect to the store of the processes that `torchrun` started; this process's rank, and how many there are.

    Raises:
        RuntimeError, ValueError: Nobody answers within the limit, or the environment is incomplete.
    """
    limit = timedelta(seconds=limit_seconds)
    store, rank, num_ranks = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    # torchrun may keep its store across restarts, with entries of earlier processes.
    return PrefixStore(f"{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}/{num_ranks}", store), rank, num_ranks


@contextmanager
def join_ranks(
    *, device_type: str, limit_seconds: float, environment: Mapping[str, str] = os.environ
) -> Iterator[SingleRank | DistributedRanks]:
    """Join the processes that `torchrun` started; without it, this process is the only one.

    Raises:
        RankLost: The others did not join within the limit.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield SingleRank()
        return
    limit = timedelta(seconds=limit_seconds)
    if device_type == "cuda":
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
    try:
        store, rank, num_ranks = connect(limit_seconds=limit_seconds, environment=environment)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=num_ranks,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        raise RankLost("joining the other processes", missing=[], seconds=limit_seconds, reason=str(error)) from error
    try:
        yield DistributedRanks(store, rank=rank, num_ranks=num_ranks, limit_seconds=limit_seconds)
    finally:
        dist.destroy_process_group()
