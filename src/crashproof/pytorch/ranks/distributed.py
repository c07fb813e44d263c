"""One of several processes that train together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from crashproof.pytorch.ranks.bounded_store import StoreSilent
from crashproof.pytorch.ranks.peers import Peers
from crashproof.rules.ranks.absence import Sign

__all__ = ["DistributedRanks"]

ValueT = TypeVar("ValueT")

_POLL_SECONDS = 0.1
_POLLS = 10
_LEAST_SECONDS = 1.0
_MAIN = 0


class DistributedRanks:
    """A process that `torchrun` started."""

    def __init__(self, peers: Peers) -> None:
        """Create it on all processes in the same order, after the default process group."""
        self.rank = peers.rank
        self.num_ranks = peers.num_ranks
        self.is_main = peers.rank == _MAIN
        self.is_stop_agreed = False
        self.is_bad_step_agreed = False
        self.peers = peers
        with self._waiting("forming a group"):
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=peers.limit_seconds))
        self._flags = torch.zeros(2)
        self._flag_work: dist.Work | None = None
        self._num_turns = 0

    def broadcast(self, value: ValueT, what: str) -> ValueT:
        """See `Ranks.broadcast`."""
        values = [value]
        with self._waiting(what):
            dist.broadcast_object_list(values, src=_MAIN, group=self.group)
        return values[0]

    def all_gather(self, value: ValueT, what: str) -> list[ValueT]:
        """See `Ranks.all_gather`."""
        values = [value] * self.num_ranks
        with self._waiting(what):
            dist.all_gather_object(values, value, group=self.group)
        return values

    @contextmanager
    def main_process_first(self, what: str) -> Iterator[None]:
        """See `Ranks.main_process_first`; the sign of life that each rank renews is the heartbeat."""
        self._num_turns += 1
        is_done = f"main_is_done/{self._num_turns}"
        if self.is_main:
            try:
                with self.collective(what):
                    yield
            finally:
                self._report_done(is_done, what)
            return
        with self.collective(what):
            self._wait_for_main(is_done, what)
        yield

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """See `Ranks.all_reduce`."""
        with self._waiting("summing the losses"):
            dist.all_reduce(numbers)
        return numbers

    def share_stop_request(self, wants_to_stop: bool, sees_bad_step: bool = False) -> None:
        """See `Ranks.share_stop_request`: a request of one step is agreed at the next."""
        with self._waiting("agreeing whether to stop"):
            if self._flag_work is not None:
                self._flag_work.wait()
                self.is_stop_agreed, self.is_bad_step_agreed = (bool(flag) for flag in self._flags.tolist())
            self._flags = torch.tensor([float(wants_to_stop), float(sees_bad_step)])
            self._flag_work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self.group, async_op=True)

    def for_background_thread(self) -> DistributedRanks:
        """See `Ranks.for_background_thread`."""
        return DistributedRanks(self.peers)

    def leave(self) -> None:
        """Take part in nothing any more."""
        self._flag_work = None
        del self.group

    @contextmanager
    def collective(self, what: str) -> Iterator[None]:
        """See `Ranks.collective`."""
        with self.peers.naming_losses(what), self.peers.activities.doing(what, is_wait=False):
            yield

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """A context that does nothing but wait for the others."""
        with self.peers.naming_losses(what), self.peers.activities.doing(what, is_wait=True):
            yield

    def _wait_for_main(self, is_done: str, what: str) -> None:
        newest, heard_at = Sign(beats=-1), time.monotonic()
        try:
            while True:
                seconds_left = heard_at + self.peers.limit_seconds - time.monotonic()
                if self._is_set(is_done, seconds=max(_LEAST_SECONDS, seconds_left)):
                    return
                sign = self.peers.signs.of(_MAIN, seconds=max(_LEAST_SECONDS, seconds_left)) or newest
                if sign.beats != newest.beats:
                    newest, heard_at = sign, time.monotonic()
                is_silent = time.monotonic() - heard_at > self.peers.limit_seconds
                # It may have been done just before it left.
                if is_silent or (newest.left and not self._is_set(is_done, seconds=_LEAST_SECONDS)):
                    raise self.peers.loss_of(_MAIN, what, sign=newest)
        except StoreSilent as error:
            raise self.peers.loss(what, network=str(error)) from error

    def _is_set(self, key: str, *, seconds: float) -> bool:
        """Whether the main process has set a key, asked for as long as its signs of life are apart."""
        for _ in range(_POLLS):
            if self.peers.store.get(key, seconds=seconds) is not None:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _report_done(self, is_done: str, what: str) -> None:
        # Where that is not possible, the next exchange finds it out, and who is lost.
        with suppress(StoreSilent):
            self.peers.store.set(is_done, what, seconds=self.peers.limit_seconds)
