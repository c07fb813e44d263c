"""Processes that meet over a store in which earlier ones have left their entries."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store

from crashproof.pytorch.fresh_store import RanksMissing, fresh_store

LIMIT = 20.0


@pytest.fixture
def store() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(seconds=LIMIT))
    return store


def meet(store: Store, num_ranks: int) -> list[Store]:
    with ThreadPoolExecutor(num_ranks) as threads:
        return [each.result() for each in [come(threads, store, rank, num_ranks) for rank in range(num_ranks)]]


def come(threads: ThreadPoolExecutor, store: Store, rank: int, num_ranks: int) -> Future[Store]:
    return threads.submit(fresh_store, store, rank=rank, num_ranks=num_ranks, limit_seconds=LIMIT)


@pytest.mark.parametrize("num_ranks", [2, 5])
def test_all_share_what_one_writes(store: Store, num_ranks: int) -> None:
    own = meet(store, num_ranks)

    own[1].set("key", "value")
    assert [b"value"] * num_ranks == [each.get("key") for each in own]


def test_nothing_of_earlier_starts_is_found_whatever_their_number_of_ranks(store: Store) -> None:
    for num_ranks in (2, 3, 2, 2, 4, 3):
        own = meet(store, num_ranks)
        assert [False] * num_ranks == [each.check(["key"]) for each in own]
        own[0].set("key", "value")


def test_a_rank_that_died_while_it_came_is_replaced(store: Store) -> None:
    """Its entry is there and rank 0 counts on it, until another process comes in its place."""
    with ThreadPoolExecutor(3) as threads:
        first = come(threads, store, 0, 3)
        with pytest.raises(RanksMissing):
            fresh_store(store, rank=2, num_ranks=3, limit_seconds=0.3)
        second = come(threads, store, 1, 3)
        threading.Event().wait(0.3)
        assert not first.done()
        third = come(threads, store, 2, 3)
        own = [first.result(), second.result(), third.result()]

    own[2].set("key", "value")
    assert [b"value"] * 3 == [each.get("key") for each in own]


def test_a_rank_0_that_died_while_it_gathered_is_replaced(store: Store) -> None:
    with pytest.raises(RanksMissing):
        fresh_store(store, rank=0, num_ranks=2, limit_seconds=0.2)
    with ThreadPoolExecutor(2) as threads:
        second = come(threads, store, 1, 2)
        threading.Event().wait(0.2)
        first = come(threads, store, 0, 2)

        first.result().set("key", "value")
        assert b"value" == second.result().get("key")


@pytest.mark.parametrize("present, missing", [([0, 2], [1, 3]), ([1, 2], [0])])
def test_who_did_not_come_is_named(store: Store, present: list[int], missing: list[int]) -> None:
    with ThreadPoolExecutor(2) as threads:
        coming = [threads.submit(fresh_store, store, rank=rank, num_ranks=4, limit_seconds=0.5) for rank in present]

        with pytest.raises(RanksMissing) as raised:
            coming[0].result()
    assert missing == raised.value.missing
    assert isinstance(coming[1].exception(), RanksMissing)


def test_an_earlier_start_leaves_nobody_out_of_the_missing(store: Store) -> None:
    meet(store, 3)

    with pytest.raises(RanksMissing) as raised:
        fresh_store(store, rank=0, num_ranks=3, limit_seconds=0.2)

    assert [1, 2] == raised.value.missing
