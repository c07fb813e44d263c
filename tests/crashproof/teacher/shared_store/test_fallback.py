"""What happens to paid answers while the shared store is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from response_stores import SqliteFixture, answered, granted, intent, key_of

from crashproof.answers.run_store import RunResponses
from crashproof.answers.store import Granted, Intent, Lost, Outcome, Refused, ResponseStore, Verdict
from crashproof.errors import StoreUnavailable
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.shared_store.fallback import SpooledStore


class StoreThatGoesAway:
    """A shared store behind a network that breaks when told to."""

    def __init__(self, store: ResponseStore) -> None:
        self.is_away = False
        self._store = store

    def serve(self, key: str) -> AnswerRecord | None:
        return self._there().serve(key)

    def read(self, key: str) -> AnswerRecord | None:
        return self._there().read(key)

    def serve_all(self, keys: Sequence[str]) -> list[AnswerRecord | None]:
        return self._there().serve_all(keys)

    def read_all(self, keys: Sequence[str]) -> Iterator[AnswerRecord | None]:
        return self._there().read_all(keys)

    def lacks(self, key: str) -> bool:
        return self._there().lacks(key)

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        return self._there().begin(intents, budget=budget)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        self._there().finish(outcomes)

    def mark(self, key: str, problem: str) -> None:
        self._there().mark(key, problem)

    def why_miss(self, request: TeacherRequest) -> str:
        return self._there().why_miss(request)

    def spending(self) -> Spending:
        return self._there().spending()

    def close(self) -> None:
        self._store.close()

    def _there(self) -> ResponseStore:
        if self.is_away:
            raise StoreUnavailable("sqlite:///…", reason="the network is down")
        return self._store


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SqliteFixture]:
    with closing(SqliteFixture(tmp_path / "shared")) as opened:
        yield opened


@pytest.fixture
def shared(stores: SqliteFixture) -> StoreThatGoesAway:
    return StoreThatGoesAway(stores.open())


@pytest.fixture
def spool(open_tracker: Callable[..., Any]) -> RunResponses:
    return open_tracker().responses


@pytest.fixture
def store(shared: StoreThatGoesAway, spool: RunResponses) -> SpooledStore:
    return SpooledStore(shared, spool=spool)


def keep_while_away(store: SpooledStore, shared: StoreThatGoesAway, question: str, **how: Any) -> None:
    request = granted(store, question)
    shared.is_away = True
    with pytest.raises(StoreUnavailable, match=r"what was paid for is kept"):
        store.finish([answered(request, **how)])
    shared.is_away = False


def test_what_the_shared_store_takes_is_nowhere_else(store: SpooledStore, spool: RunResponses) -> None:
    store.finish([answered(granted(store, "a"))])

    assert store.read(key_of("a")) is not None
    assert None is spool.read(key_of("a"))


def test_an_answer_that_it_cannot_take_is_kept_in_the_run_and_carried_over_instead_of_being_bought_again(
    store: SpooledStore, shared: StoreThatGoesAway, spool: RunResponses, stores: SqliteFixture
) -> None:
    keep_while_away(store, shared, "a")
    assert (None, True) == (store.read(key_of("a")), spool.read(key_of("a")) is not None)
    stores.let_leases_run_out()

    (verdict,) = store.begin([intent("a")], budget=None)

    assert isinstance(verdict, AnswerRecord)
    assert {"text": "about a"} == verdict.response
    found = store.read(key_of("a"))
    assert found is not None
    assert (verdict.response, verdict.cost) == (found.response, found.cost)
    assert [] == stores.open().problems()


def test_what_is_carried_over_keeps_its_letter_and_its_problem(
    store: SpooledStore, shared: StoreThatGoesAway, stores: SqliteFixture
) -> None:
    keep_while_away(store, shared, "a", response={}, raw="<html>", problem="it is no JSON")
    stores.let_leases_run_out()

    store.begin([intent("a")], budget=None)

    found = store.read(key_of("a"))
    assert found is not None
    assert ("<html>", "it is no JSON") == (found.raw, found.problem)


def test_asking_again_while_it_is_away_keeps_one_copy(
    store: SpooledStore, shared: StoreThatGoesAway, spool: RunResponses
) -> None:
    outcome = answered(granted(store, "a"))
    shared.is_away = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            store.finish([outcome])
    shared.is_away = False

    store.finish([outcome])

    assert (1, 1) == (spool.spending().answers, store.spending().answers)


def test_what_brought_no_answer_is_not_kept(
    store: SpooledStore, shared: StoreThatGoesAway, spool: RunResponses
) -> None:
    ends = [Refused(granted=granted(store, "a"), reason="no"), Lost(granted=granted(store, "b"), reason="gone")]
    shared.is_away = True

    with pytest.raises(StoreUnavailable):
        store.finish(ends)

    assert (None, None) == (spool.read(key_of("a")), spool.read(key_of("b")))


def test_an_answer_of_no_use_that_is_to_be_replaced_is_not_carried_over(
    store: SpooledStore, shared: StoreThatGoesAway, stores: SqliteFixture
) -> None:
    keep_while_away(store, shared, "a", problem="it is empty")
    stores.let_leases_run_out()

    (verdict,) = store.begin([structs.replace(intent("a"), replaces=True)], budget=None)

    assert isinstance(verdict, Granted)


def test_what_a_run_has_from_before_fills_a_new_shared_store(store: SpooledStore, spool: RunResponses) -> None:
    spool.finish([answered(granted(spool, "a"))])

    (verdict,) = store.begin([intent("a")], budget=None)

    assert isinstance(verdict, AnswerRecord)
    assert store.read(key_of("a")) is not None


def test_all_else_is_asked_of_the_shared_store(store: SpooledStore, stores: SqliteFixture) -> None:
    store.finish([answered(granted(store, "a"))])
    store.mark(key_of("a"), "it is empty")

    served = store.serve(key_of("a"))

    assert served is not None
    assert {"text": "about a"} == served.response
    assert "differs in messages" in store.why_miss(intent("b").request)
    assert (1, 1) == (store.spending().answers, store.spending().answers_bad)
    store.close()
