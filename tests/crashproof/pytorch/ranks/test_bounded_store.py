from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from crashproof.pytorch.ranks.bounded_store import BoundedStore, StoreSilent, call_within


class DeafStore:
    """As a client of a TCPStore is after a network cut: whatever it is asked, it waits for an answer."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.is_over = threading.Event()

    def check(self, keys):
        self.num_calls += 1
        self.is_over.wait()

    get = set = append = check


def test_what_was_stored_is_found_and_what_was_not_is_not_waited_for():
    store = BoundedStore(HashStore(), name="here")
    store.set("a", "one", seconds=10)
    store.append("b", "1,", seconds=10)
    store.append("b", "2,", seconds=10)

    assert ("one", "1,2,", None) == tuple(store.get(key, seconds=10) for key in "abc")


def test_a_store_that_does_not_answer_is_named_and_not_asked_again():
    deaf = DeafStore()
    store = BoundedStore(deaf, name="host-a:29400")
    begun_at = time.monotonic()

    for _ in range(20):
        with pytest.raises(StoreSilent, match="the store at host-a:29400 does not answer"):
            store.get("a", seconds=0.2)

    assert 1 == deaf.num_calls
    assert time.monotonic() - begun_at < 20 * 0.2
    deaf.is_over.set()


def test_a_store_that_has_gone_is_as_one_that_does_not_answer():
    class GoneStore(DeafStore):
        def check(self, keys):
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(StoreSilent):
        BoundedStore(GoneStore(), name="host-a:29400").get("a", seconds=10)


def test_errors_of_a_bounded_call_are_its_callers():
    with pytest.raises(ZeroDivisionError):
        call_within(10, lambda: 1 // 0)
    assert timedelta(1) == call_within(10, lambda: timedelta(1))
