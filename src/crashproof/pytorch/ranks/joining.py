"""Join the processes that `torchrun` started, and leave them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from crashproof.errors import RankFailed, RankLost
from crashproof.pytorch.exit_codes import EXIT_ERROR, exit_code_of
from crashproof.pytorch.fresh_store import RanksMissing, connect
from crashproof.pytorch.interrupts import EXIT_PREEMPTED
from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.bounded_store import BoundedStore, StoreSilent, call_within
from crashproof.pytorch.ranks.distributed import DistributedRanks
from crashproof.pytorch.ranks.forced_exit import ForcedExit
from crashproof.pytorch.ranks.guardian import Guardian
from crashproof.pytorch.ranks.identity import own_identity
from crashproof.pytorch.ranks.peers import Peers
from crashproof.pytorch.ranks.single import SingleRank
from crashproof.pytorch.ranks.watchdog import GRACE_SECONDS, Watchdog
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["join_ranks"]

_LEAVE_SECONDS = 10.0
"""How long a process may take to end once it has learned of a loss."""
_STAY_SECONDS = 10.0
_MOST_CHARACTERS = 200
_JOINING = "joining the other processes"


@contextmanager
def join_ranks(
    *, device_type: str, limit_seconds: float, environment: Mapping[str, str] = os.environ
) -> Iterator[SingleRank | DistributedRanks]:
    """Join the processes that `torchrun` started; without it, this process is the only one.

    Inside, the process ends with exit code 75 where it would wait for longer than the limit and a few seconds.

    Raises:
        RankLost: The others did not join within the limit, or one was lost. The process has 10 s to end then.
        RankFailed: Another process has ended with an error that another start does not mend.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield SingleRank()
        return
    if device_type == "cuda":
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
    with ExitStack() as stack:
        activities = Activities()
        watchdog = _watch(stack, activities, limit_seconds, environment)
        try:
            with activities.doing(_JOINING, is_wait=True):
                ranks = _join(activities, device_type, limit_seconds, environment)
            # Without torchrun the store, and in it why this rank has left, ends with the first rank.
            stack.callback(ranks.peers.stay_for_others, seconds=_STAY_SECONDS)
            stack.callback(_leave_group, ranks, watchdog)
            with _in_contact(ranks.peers, watchdog):
                yield ranks
        except RankLost:
            _leave_soon(watchdog)
            raise


def _watch(
    stack: ExitStack, activities: Activities, limit_seconds: float, environment: Mapping[str, str]
) -> Watchdog:
    """Have this process ended where it hangs, by itself, or where it is stopped, by another."""
    identity = own_identity()
    name = f"Rank {environment.get('RANK')} ({identity.host}, pid {identity.pid})"
    guardian = Guardian(name=name, longest_seconds=limit_seconds + GRACE_SECONDS)
    stack.callback(guardian.close)
    watchdog = Watchdog(activities, ForcedExit(EXIT_PREEMPTED), name=name, limit_seconds=limit_seconds)
    stack.callback(watchdog.stop)
    return watchdog


@contextmanager
def _in_contact(peers: Peers, watchdog: Watchdog) -> Iterator[None]:
    """Hear of losses, name them, and tell the others how this rank has left."""
    watchdog.contact = peers.signs
    peers.on_loss = lambda: _leave_soon(watchdog)
    left, is_final = "it has finished", False
    try:
        with peers.naming_losses("working together"):
            yield
    except BaseException as error:
        left = f"it ended with {type(error).__name__}: {_first_line(error)}"
        is_final = exit_code_of(error) == EXIT_ERROR and not isinstance(error, RankFailed)
        raise
    finally:
        peers.signs.stop(left, is_final=is_final)


def _leave_soon(watchdog: Watchdog) -> None:
    watchdog.leave_within(_LEAVE_SECONDS, "after another rank was lost")


def _leave_group(ranks: DistributedRanks, watchdog: Watchdog) -> None:
    # Its connections close with the last reference: only then the others notice.
    ranks.leave()
    try:
        call_within(GRACE_SECONDS, dist.destroy_process_group)
    except TimeoutError:
        watchdog.leave_within(_LEAVE_SECONDS, "after its process group could not be left")


def _join(
    activities: Activities, device_type: str, limit_seconds: float, environment: Mapping[str, str]
) -> DistributedRanks:
    absent: list[int] = []
    try:
        store, rank, num_ranks = connect(limit_seconds=limit_seconds, environment=environment)
        with _naming_absent(store, rank, num_ranks, absent):
            _form_default_group(store, rank, num_ranks, device_type, limit_seconds)
            second = _second_store(environment, limit_seconds)
            peers = Peers(second, activities, rank=rank, num_ranks=num_ranks, limit_seconds=limit_seconds)
            # The first rank may host it, and the others read there why this one has left.
            peers.kept = store
            return _meet(peers)
    except RanksMissing as error:
        raise RankLost(_JOINING, missing=error.missing, seconds=limit_seconds, reason="it has not come") from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RankLost(_JOINING, missing=absent, seconds=limit_seconds, reason=reason) from error


@contextmanager
def _naming_absent(store: Store, rank: int, num_ranks: int, absent: list[int]) -> Iterator[None]:
    """Say that this rank has come; if joining fails, fill in who has not."""
    store.set(f"joined/{rank}", "")
    try:
        yield
    except RuntimeError:
        asked = BoundedStore(store, name="the first rank")
        with suppress(StoreSilent):
            absent += [each for each in range(num_ranks) if asked.get(f"joined/{each}", seconds=1.0) is None]
        raise


def _form_default_group(store: Store, rank: int, num_ranks: int, device_type: str, limit_seconds: float) -> None:
    # On a GPU the processes exchange a flag over gloo at each step: that fails first, and names who is lost.
    extra_seconds = GRACE_SECONDS if device_type == "cuda" else 0.0
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=limit_seconds + extra_seconds),
    )


def _second_store(environment: Mapping[str, str], limit_seconds: float) -> BoundedStore:
    """Another connection to the ranks' store: a call that hangs in the first one holds that up."""
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    limit = timedelta(seconds=limit_seconds)
    # torch exports it where it was built for several processes.
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)  # type: ignore[attr-defined]
    # Nothing that earlier processes of the same run have left there may count.
    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    return BoundedStore(PrefixStore(f"crashproof/{token[0]}", store), name=f"{host}:{port}")


def _meet(peers: Peers) -> DistributedRanks:
    """Give a first sign of life, and tell the others which process this rank is."""
    peers.signs.start()
    ranks = DistributedRanks(peers)
    peers.identities = ranks.all_gather(own_identity(), _JOINING)
    return ranks


def _first_line(error: BaseException) -> str:
    lines = without_secrets(str(error)).splitlines()
    return lines[0][:_MOST_CHARACTERS].rstrip(".") if lines else ""
