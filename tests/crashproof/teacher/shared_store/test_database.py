"""A database that is away, full, wrong or slow, and what is said about it."""

from __future__ import annotations

import logging
import time
import traceback
from itertools import chain

import pytest
from response_stores import CENT, answered, granted, intent, keep, key_of
from sqlalchemy import text

from crashproof.answers.store import Granted
from crashproof.clock import SYSTEM_CLOCK
from crashproof.errors import ConfigError, DiskFull, StorageError, StoreUnavailable
from crashproof.teacher.shared_store.database import Database, chunks
from crashproof.teacher.shared_store.store import SharedStore

# The first rows that a transaction adds to a table fail; numbers drawn from a sequence are not drawn back.
FAILING = """
CREATE SEQUENCE failures;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('failures') <= {times} THEN
        {action};
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION fail();
"""


def raises(state: str) -> str:
    return f"RAISE EXCEPTION 'made for a test' USING ERRCODE = '{state}'"


@pytest.fixture
def fails(server_store):
    """Let the server fail the next rows of a table."""

    def arm(action: str, *, times: int, table: str = "crashproof_requests") -> None:
        server_store.execute(FAILING.format(action=action, times=times, table=table))

    return arm


@pytest.mark.parametrize(
    "url, expected",
    [
        pytest.param("answers.db", "The URL of the store cannot be parsed. For example sqlite:////data", id="no-url"),
        pytest.param("", "cannot be parsed", id="empty"),
        pytest.param("postgresql://user:open@sesame:x/y", "cannot be parsed", id="no-port"),
        pytest.param("mysql://user:sesame@host/x", "A store in 'mysql' is not supported", id="another-database"),
        pytest.param("sqlite://", "must be a file", id="in-memory"),
        pytest.param("sqlite:///:memory:", "must be a file", id="in-memory-by-name"),
    ],
)
def test_a_url_that_names_no_store_is_refused(url, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        SharedStore.open(url, account="us")
    assert "sesame" not in str(caught.value)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(StoreUnavailable, match=f"the folder {tmp_path}/missing does not exist"):
        SharedStore.open(f"sqlite:///{tmp_path}/missing/answers.db", account="us")


def test_a_file_that_is_no_database_is_left_as_it_is(file_store):
    file_store.path.write_bytes(b"paid answers\n" * 1000)

    with pytest.raises(StoreUnavailable, match=r"sqlite:////.*answers.db cannot be used: file is not a database\."):
        file_store.open()
    assert b"paid answers\n" * 1000 == file_store.path.read_bytes()


def test_a_folder_in_the_place_of_the_file_is_told(file_store):
    file_store.path.mkdir()

    with pytest.raises(StoreUnavailable, match="unable to open database file"):
        file_store.open()


@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "empty"])
def test_a_log_without_its_file_is_not_thrown_away(file_store, is_missing):
    log = file_store.path.with_name("answers.db-wal")
    log.write_bytes(b"all that was paid for")
    if not is_missing:
        file_store.path.touch()

    with pytest.raises(StoreUnavailable, match=r"answers.db is empty but answers.db-wal is not: restore both"):
        file_store.open()
    assert b"all that was paid for" == log.read_bytes()


def test_an_empty_file_that_a_killed_process_left_becomes_a_store(file_store):
    file_store.path.touch()
    store = file_store.open()
    keep(store, "a")

    assert [] == store.problems()


def test_a_commit_in_a_file_survives_a_power_loss_and_readers_do_not_wait_for_writers(file_store):
    with file_store.database() as database:
        told = [
            database.read(lambda connection, name=name: connection.scalar(text(f"PRAGMA {name}")))
            for name in ("synchronous", "journal_mode")
        ]

    assert [2, "wal"] == told


def test_a_file_that_cannot_grow_is_a_full_disk_and_goes_on_when_there_is_space(file_store):
    with file_store.database() as database:
        store = SharedStore(database, account="us", lease_seconds=60.0, clock=SYSTEM_CLOCK)
        request = granted(store, "a")
        answer = answered(request, response={"text": "x" * 100_000})
        database.write(lambda connection: connection.execute(text("PRAGMA max_page_count = 20")))
        with pytest.raises(DiskFull, match=r"answers\.db could not be written"):
            store.finish([answer])
        database.write(lambda connection: connection.execute(text("PRAGMA max_page_count = 2000")))
        store.finish([answer])

        assert {"text": "x" * 100_000} == store.read(key_of("a")).response
        assert [] == store.problems()


def test_a_file_that_somebody_holds_for_too_long_is_told(file_store):
    with file_store.database(lock_seconds=0.1) as patient, file_store.database(lock_seconds=0.1) as other:

        def hold(_: object) -> None:
            with pytest.raises(StoreUnavailable, match="database is locked"):
                other.write(lambda connection: None)

        patient.write(hold)


@pytest.mark.parametrize(
    "wrong, expected",
    [
        pytest.param(
            {"password": "opensesame"}, 'password authentication failed for user "crashproof"', id="password"
        ),
        pytest.param({"database": "nowhere"}, 'database "nowhere" does not exist', id="database"),
    ],
)
def test_what_the_server_refuses_is_told_without_the_password(postgres, wrong, expected):
    with pytest.raises(StoreUnavailable, match=expected) as caught:
        SharedStore.open(postgres.url(**wrong), account="us")

    told = "".join(traceback.format_exception(caught.value))
    assert "sesame" not in told
    assert "postgresql+psycopg://crashproof:***@/" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://us:sesame@127.0.0.1:1/x",
        "postgresql+psycopg://us@/x?host=/nowhere&password=sesame",
    ],
    ids=["port", "socket"],
)
def test_a_server_that_is_not_there_is_told_at_once_and_without_the_password(url):
    with pytest.raises(StoreUnavailable, match="connection") as caught:
        SharedStore.open(url, account="us")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03"], ids=["serialization", "deadlock", "locked"])
def test_what_may_pass_is_tried_again(server_store, fails, state):
    store = server_store.open()
    fails(raises(state), times=2)
    keep(store, "a", cost=CENT)

    assert (1, CENT) == (store.spending().answers, store.spending().spent)
    assert [] == store.problems()


def test_a_connection_that_is_cut_within_a_transaction_is_opened_again(server_store, fails):
    store = server_store.open()
    fails("PERFORM pg_terminate_backend(pg_backend_pid())", times=1, table="crashproof_answers")
    keep(store, "a", cost=CENT)

    assert (1, CENT, 0) == (store.spending().answers, store.spending().spent, store.spending().reserved)


def test_a_server_that_has_cut_all_connections_is_asked_again(server_store):
    store = server_store.open()
    keep(store, "a")
    others = "usename = 'crashproof' AND pid <> pg_backend_pid()"
    server_store.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")

    assert {"text": "about a"} == store.read(key_of("a")).response
    assert isinstance(store.begin([intent("b")], budget=None)[0], Granted)


def test_what_does_not_pass_is_told_after_a_while_and_can_be_done_again(server_store, fails):
    store = server_store.open(retry_seconds=0.1, clock=SYSTEM_CLOCK)
    request = granted(store, "a")
    fails(raises("40001"), times=1_000_000, table="crashproof_answers")
    with pytest.raises(StoreUnavailable, match="made for a test"):
        store.finish([answered(request)])
    server_store.execute("DROP TRIGGER fail ON crashproof_answers")
    store.finish([answered(request)])

    assert {"text": "about a"} == store.read(key_of("a")).response


def test_a_question_that_the_server_cannot_take_is_told_at_once(server_store):
    with pytest.raises(StoreUnavailable, match="NUL"):
        server_store.open(retry_seconds=1_000.0).read("\0")


def test_a_full_disk_of_the_server_is_told_in_words(server_store, fails):
    store = server_store.open()
    fails(raises("53100"), times=1)

    with pytest.raises(StorageError, match="the disk of the database is full; free space there"):
        store.begin([intent("a")], budget=None)
    assert granted(store, "a")


def test_letting_go_of_a_store_that_is_away_is_no_error(server_store, caplog):
    store = server_store.open(retry_seconds=0.1, clock=SYSTEM_CLOCK)
    keep(store, "a")
    store.serve(key_of("a"))
    server_store.execute("ALTER TABLE crashproof_accounts RENAME TO elsewhere")
    store.close()

    assert "Could not record how many answers were served" in caplog.text


def test_a_server_that_does_not_wait_for_its_disk_is_told_to(server_store, caplog):
    url = server_store.url + "%20-csynchronous_commit%3Doff"
    database = Database(url, retry_seconds=1.0, clock=SYSTEM_CLOCK)
    told = database.read(lambda connection: connection.scalar(text("SHOW synchronous_commit")))
    database.close()

    assert "on" == told
    assert ["has synchronous_commit off; crashproof turns it on" in message for message in caplog.messages] == [True]


def test_a_session_that_stands_still_within_a_transaction_lets_others_go_on(server_store):
    with server_store.database() as database:
        told = [
            database.read(lambda connection, name=name: connection.scalar(text(f"SHOW {name}")))
            for name in ("idle_in_transaction_session_timeout", "lock_timeout")
        ]

    assert ["10s", "20s"] == told


def test_a_lease_that_cannot_be_renewed_is_told_and_tried_again(file_store, caplog):
    caplog.set_level(logging.WARNING)
    store = file_store.open(lease_seconds=0.06)
    granted(store, "a")
    file_store.execute("ALTER TABLE crashproof_requests RENAME TO elsewhere")
    while not caplog.messages:
        time.sleep(0.01)
    file_store.execute("ALTER TABLE elsewhere RENAME TO crashproof_requests")

    assert "Could not renew the leases of 1 requests" in caplog.messages[0]


def test_long_lists_are_asked_for_in_parts():
    parts = list(chunks([f"{number:04}" for number in reversed(range(1_001))]))

    assert [500, 500, 1] == [len(part) for part in parts]
    assert [f"{number:04}" for number in range(1_001)] == list(chain(*parts))
