"""Requests of processes that have ended, and of programs that know nothing of owners."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from response_stores import CENT, SqlStoreFixture, answered, granted, intent, keep, key_of

from crashproof.answers.store import Busy, Granted, Lost
from crashproof.clock import SYSTEM_CLOCK
from crashproof.errors import StoreUnavailable
from crashproof.teacher.shared_store.owners import LINUX_PROCESSES, Owner
from crashproof.teacher.shared_store.store import SharedStore


@dataclasses.dataclass
class Machine:
    """The processes of one container on one machine."""

    host: str = "one"
    boot_id: str = "b1"
    namespaces: str = "pid:[1]"
    living: dict[int, int] = dataclasses.field(default_factory=dict)
    """When each process started, by its id."""
    ticks: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(100))

    def start(self, pid: int) -> Process:
        self.living[pid] = next(self.ticks)
        owner = Owner(
            host=self.host, boot_id=self.boot_id, namespaces=self.namespaces, pid=pid, started=self.living[pid]
        )
        return Process(self, owner)


@dataclasses.dataclass
class Process:
    """One process of a machine."""

    machine: Machine
    owner: Owner

    def own(self) -> Owner:
        return self.owner

    def has_ended(self, pid: int, started: int) -> bool:
        return self.machine.living.get(pid) != started

    def die(self) -> None:
        del self.machine.living[self.owner.pid]


class Nameless:
    """A process of the first release, whose requests have no owner."""

    def own(self) -> None:
        return None

    def has_ended(self, pid: int, started: int) -> bool:
        return False


@pytest.fixture
def machine() -> Machine:
    return Machine()


def verdict_on(store: Any, question: str) -> Any:
    return store.begin([intent(question)], budget=None)[0]


def test_what_a_dead_process_had_in_flight_is_in_doubt_and_may_be_sent_at_once(shared, machine):
    dead = machine.start(10)
    granted(shared.open("one", processes=dead), "a")
    dead.die()
    store = shared.open("other", processes=machine.start(11))

    assert isinstance(verdict_on(store, "a"), Granted)
    theirs = shared.open("one", processes=machine.start(12)).spending()
    assert (1, CENT, 0) == (theirs.requests_in_doubt, theirs.in_doubt, theirs.reserved)
    assert [("lost", None)] == shared.execute(
        "SELECT state, owner FROM crashproof_requests WHERE account = 'one' AND reason LIKE '% has ended'"
    )
    assert [] == store.problems()


def test_a_process_with_the_id_of_the_dead_one_changes_nothing(shared, machine):
    granted(shared.open("one", processes=machine.start(10)), "a")
    store = shared.open("other", processes=machine.start(10))

    assert isinstance(verdict_on(store, "a"), Granted)


@pytest.mark.parametrize(
    "elsewhere",
    [{"boot_id": "b2", "host": "two"}, {"boot_id": "b2"}, {"host": "two"}, {"namespaces": "pid:[2]"}],
    ids=["another machine", "another boot", "another host name", "another container"],
)
def test_whoever_cannot_be_seen_from_here_has_its_whole_lease(shared, machine, elsewhere):
    dead = machine.start(10)
    granted(shared.open("one", processes=dead), "a")
    dead.die()
    store = shared.open("other", processes=Machine(**elsewhere).start(11))

    waits = verdict_on(store, "a")
    shared.let_leases_run_out()
    assert (Busy, Granted) == (type(waits), type(verdict_on(store, "a")))


def test_whoever_lives_keeps_what_it_has_in_flight(shared, machine):
    granted(shared.open("one", processes=machine.start(10)), "a")

    assert isinstance(verdict_on(shared.open("other", processes=machine.start(11)), "a"), Busy)


def test_a_container_that_is_started_again_takes_its_run_over_at_once(shared, tmp_path):
    lock, other_lock = tmp_path / "writer.lock", tmp_path / "other.lock"
    for path in (lock, other_lock):
        path.write_text("")
    granted(shared.open("one", processes=Machine(namespaces="pid:[1]").start(7), run_lock=lock), "a")
    another_run = shared.open("two", processes=Machine(namespaces="pid:[2]").start(7), run_lock=other_lock)
    same_run = shared.open("one", processes=Machine(namespaces="pid:[3]", host="three").start(7), run_lock=lock)

    # Opening the run again has put it in doubt for everybody.
    assert isinstance(verdict_on(same_run, "a"), Granted)
    assert isinstance(verdict_on(another_run, "a"), Busy)


def test_another_run_in_another_container_takes_nothing_over(shared, tmp_path):
    (tmp_path / "a").write_text("")
    (tmp_path / "b").write_text("")
    granted(shared.open("one", processes=Machine(namespaces="pid:[1]").start(7), run_lock=tmp_path / "a"), "a")
    store = shared.open("one", processes=Machine(namespaces="pid:[2]").start(7), run_lock=tmp_path / "b")

    assert isinstance(verdict_on(store, "a"), Busy)


def test_a_budget_is_not_waited_for_that_a_dead_process_has_reserved(shared, machine):
    dead = machine.start(10)
    granted(shared.open("one", processes=dead), "a", budget=CENT)
    dead.die()
    store = shared.open("one", processes=machine.start(11))

    (refused,) = store.begin([intent("b")], budget=CENT)

    assert not refused.may_change
    assert (CENT, 0) == (store.spending().in_doubt, store.spending().reserved)


def test_a_store_that_is_closed_leaves_nothing_in_flight(shared, machine):
    store = shared.open("one", processes=machine.start(10))
    granted(store, "a")
    keep(store, "b")
    store.close()
    other = shared.open("one", processes=machine.start(11))

    assert (1, CENT, 0) == (
        other.spending().requests_in_doubt,
        other.spending().in_doubt,
        other.spending().reserved,
    )
    assert isinstance(verdict_on(other, "a"), Granted)
    assert [] == other.problems()


def test_an_answer_that_was_kept_elsewhere_when_the_store_closed_still_counts(shared):
    """What was given up at the end of one process may be known to another one."""
    first = shared.open("one")
    request = granted(first, "a")
    first.close()
    second = shared.open("one")
    second.finish([answered(request, CENT)])

    assert {"text": "about a"} == second.read(key_of("a")).response
    assert (0, CENT) == (second.spending().requests_in_doubt, second.spending().spent)
    assert [] == second.problems()


def test_what_has_ended_names_no_owner(shared):
    store = shared.open()
    requests = [granted(store, each) for each in "abc"]
    ((owner,),) = shared.execute("SELECT DISTINCT owner FROM crashproof_requests")
    store.finish([answered(requests[0]), Lost(granted=requests[1], reason="timeout")])

    assert LINUX_PROCESSES.own() == msgspec.json.decode(owner, type=Owner)
    assert [(None, 2), (owner, 1)] == sorted(
        shared.execute("SELECT owner, count(*) FROM crashproof_requests GROUP BY owner"), key=lambda row: row[1] == 1
    )


def without_owners(stores: SqlStoreFixture) -> None:
    """Make the store as the first release has left it."""
    stores.execute("ALTER TABLE crashproof_requests DROP COLUMN owner")


def test_a_store_of_the_first_release_is_opened_with_all_that_is_in_it(shared, machine):
    store = shared.open("one")
    keep(store, "a", cost=CENT)
    granted(store, "b")
    without_owners(shared)
    opened = shared.open("other", processes=machine.start(10))

    assert {"text": "about a"} == opened.read(key_of("a")).response
    # Nobody knows who has it in flight.
    assert isinstance(verdict_on(opened, "b"), Busy)
    shared.let_leases_run_out()
    assert isinstance(verdict_on(opened, "b"), Granted)
    assert [] == opened.problems()


def test_a_program_of_the_first_release_beside_this_one_keeps_its_requests_and_its_promises(shared, machine):
    old, new = shared.open("old", processes=Nameless()), shared.open("new", processes=machine.start(10))
    theirs, ours = granted(old, "a"), granted(new, "b")
    machine.living.clear()
    third = shared.open("third", processes=machine.start(11))

    assert isinstance(verdict_on(third, "a"), Busy)
    # The old one waits for the lease of the dead one, as it always did.
    assert isinstance(verdict_on(old, "b"), Busy)
    shared.let_leases_run_out()
    assert isinstance(verdict_on(old, "b"), Granted)
    old.finish([answered(theirs, CENT)])
    new.finish([answered(ours, CENT)])
    assert [CENT, CENT] == [old.spending().spent, new.spending().spent]
    assert [] == third.problems()


@contextmanager
def limited_user(stores: Any) -> Iterator[str]:
    """A user of PostgreSQL who may use the tables and not alter them; its URL."""
    name = f"limited_{stores.schema}"
    stores.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'")
    stores.execute(f"GRANT USAGE ON SCHEMA {stores.schema} TO {name}")
    stores.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {stores.schema} TO {name}")
    try:
        yield stores.url.replace("//crashproof:", f"//{name}:").replace("open%3Asesame%4042", "pw")
    finally:
        stores.execute(f"DROP OWNED BY {name}")
        stores.execute(f"DROP ROLE {name}")


def test_a_user_who_may_not_alter_an_old_store_uses_it_as_it_is(server_store, caplog):
    keep(server_store.open("one"), "a")
    without_owners(server_store)
    owner_url = server_store.url
    with limited_user(server_store) as server_store.url:
        store = server_store.open("two")
        keep(store, "b")
        granted(store, "c")
        assert {"text": "about a"} == store.read(key_of("a")).response
        assert "may not add the column owner to crashproof_requests" in caplog.text
        store.close()
        # Once somebody else has added it, its own requests have owners too.
        server_store.url, limited_url = owner_url, server_store.url
        server_store.open("one")
        server_store.url = limited_url
        granted(server_store.open("two"), "d")
        server_store.url = owner_url

    assert [True] == [owner is not None for (owner,) in owners_of(server_store, "d")]


def owners_of(stores: SqlStoreFixture, question: str) -> list[Any]:
    return stores.execute(f"SELECT owner FROM crashproof_requests WHERE key = '{key_of(question)}'")


def test_a_table_that_is_locked_for_long_is_an_error_and_not_an_old_store(server_store):
    server_store.open("one")
    without_owners(server_store)
    with psycopg.connect(
        host=str(server_store.server.folder), user="crashproof", password="open:sesame@42", dbname="postgres"
    ) as connection:
        connection.execute(f"LOCK TABLE {server_store.schema}.crashproof_requests")
        with server_store.database(lock_seconds=1.0) as database, pytest.raises(StoreUnavailable, match="timeout"):
            SharedStore(database, account="two", lease_seconds=60.0, clock=SYSTEM_CLOCK)


def test_the_file_of_a_lock_that_is_not_there_is_no_proof(shared, tmp_path: Path):
    missing = tmp_path / "missing.lock"
    granted(shared.open("one", processes=Machine(namespaces="pid:[1]").start(7), run_lock=missing), "a")
    store = shared.open("one", processes=Machine(namespaces="pid:[2]").start(7), run_lock=missing)

    assert isinstance(verdict_on(store, "a"), Busy)
