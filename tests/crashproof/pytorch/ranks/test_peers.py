"""What is found out about ranks that do not answer; one store stands for the network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace
from torch.distributed import HashStore

from crashproof.errors import RankLost
from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.bounded_store import BoundedStore
from crashproof.pytorch.ranks.identity import own_identity, state_of
from crashproof.pytorch.ranks.peers import Peers
from crashproof.rules.ranks.absence import ProcessState, RankIdentity

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")
GLOO = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:9. Check the logs. GLHF!"


def identity_of(pid: int) -> RankIdentity:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return replace(own_identity(), pid=pid, start_ticks=int(fields[19]))


@pytest.fixture
def sleeper() -> Iterator[Any]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def store() -> HashStore:
    return HashStore()


def peer(store: HashStore, rank: int, identities: list[RankIdentity | None] | None = None) -> Peers:
    name = BoundedStore(store, name="host-a:29400")
    peers = Peers(name, Activities(), rank=rank, num_ranks=3, limit_seconds=1.0)
    peers.identities = identities or [None] * 3
    return peers


def loss_of(peers: Peers) -> RankLost:
    with pytest.raises(RankLost) as raised, peers.naming_losses("computing step 7"):
        raise RuntimeError(GLOO)
    return raised.value


def test_a_rank_that_is_stopped_here_is_named_at_once_with_its_process(store, sleeper):
    stopped = psutil.Process(sleeper.pid)
    stopped.suspend()
    me, other = own_identity(), identity_of(sleeper.pid)
    peer(store, 2).signs.notice_loss(seconds=10)

    loss = loss_of(peer(store, 0, [me, other, None]))

    assert [1] == loss.missing
    assert str(loss).startswith(
        f"Lost rank 1 ({me.host}, pid {sleeper.pid}) while computing step 7 (limit 1 s): stopped (state T) "
        "(Connection closed by peer [10.0.0.1]:9)."
    )


def test_whoever_says_why_it_leaves_is_believed_and_others_are_not_blamed(store):
    one, other = peer(store, 1), peer(store, 2)
    one.signs.start()
    other.signs.start()
    one.signs.stop("it ended with KeyError: 'x'")

    loss = loss_of(peer(store, 0))
    other.signs.stop("")

    assert ([1], True) == (loss.missing, "it ended with KeyError: 'x' (Connection" in str(loss))


def test_a_rank_that_is_alive_and_late_is_told_from_one_that_gives_no_sign(store):
    late, silent = peer(store, 1), peer(store, 2)
    with late.activities.doing("writing checkpoint_8", is_wait=False):
        late.signs.start()
        silent.signs.start()
        silent.signs._thread.stop(seconds=10)
        blamed = loss_of(peer(store, 0))
        silent.signs.notice_loss(seconds=10)
        late_only = loss_of(peer(store, 0))
        late.signs.stop("it has finished")

    assert ([2], True) == (blamed.missing, "it gives no sign of life" in str(blamed))
    assert ([1], True) == (late_only.missing, "it is alive, and has been writing checkpoint_8 for" in str(late_only))


def test_without_the_store_only_ranks_of_other_hosts_are_called_lost(sleeper):
    class GoneStore:
        def append(self, key, value):
            raise RuntimeError("Broken pipe")

    here, far = identity_of(sleeper.pid), replace(own_identity(), boot_id="another", host="host-b", pid=9)

    loss = loss_of(peer(GoneStore(), 0, [own_identity(), here, far]))

    assert [2] == loss.missing
    assert "Lost rank 2 (host-b, pid 9) while computing step 7" in str(loss)
    assert "the store at host-a:29400 does not answer (Connection closed" in str(loss)


def test_an_error_of_ones_own_stays_what_it_is(store):
    with pytest.raises(RuntimeError, match="size mismatch"), peer(store, 0).naming_losses("multiplying"):
        raise RuntimeError("size mismatch")


def test_a_loss_is_known_to_all_from_then_on(store):
    one, other = peer(store, 0), peer(store, 1)
    assert 0.0 == one.signs.lost_seconds
    other.signs.notice_loss(seconds=10)
    one.signs.start()
    one.signs._thread.stop(seconds=10)

    assert {1} == one.signs.have_noticed(seconds=10)
    assert 0.0 < other.signs.lost_seconds < 60.0
    assert 0.0 <= one.signs.lost_seconds < 60.0


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, ProcessState.RUNNING),
        ({"start_ticks": 1}, ProcessState.ENDED),
        ({"boot_id": "another"}, ProcessState.UNKNOWN),
        ({"boot_id": ""}, ProcessState.UNKNOWN),
        ({"pid_namespace": "pid:[1]"}, ProcessState.UNKNOWN),
    ],
    ids=["itself", "a-later-process-of-its-number", "another-boot", "no-boot", "another-container"],
)
def test_a_process_is_judged_only_where_it_is_surely_the_one(change, expected):
    assert expected is state_of(replace(own_identity(), **change))


def test_a_process_that_has_ended_is_known_to_have_ended(sleeper):
    identity = identity_of(sleeper.pid)
    assert ProcessState.RUNNING is state_of(identity)
    sleeper.kill()
    psutil.Process(sleeper.pid).status()
    # Also before it is waited for, as a zombie.
    while ProcessState.RUNNING is state_of(identity):
        pass
    assert ProcessState.ENDED is state_of(identity)
    sleeper.wait()
    assert ProcessState.ENDED is state_of(identity)
