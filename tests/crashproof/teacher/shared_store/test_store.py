"""What only a store that many processes share promises."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from msgspec import structs
from response_stores import CENT, SqliteFixture, answered, granted, intent, keep, key_of

from crashproof.answers.store import Busy, Granted, Intent, Lost, OverBudget, Refused
from crashproof.clock import SYSTEM_CLOCK
from crashproof.errors import ConfigError, NewerFormat, StorageError, StoreUnavailable, UnknownRecord
from crashproof.optional_dependencies import install_line
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.lines.codec import encode
from crashproof.records.requests import AnswerRecord
from crashproof.rules.spending import as_dollars
from crashproof.teacher.shared_store.database import Database
from crashproof.teacher.shared_store.ledger import Ledger, Quarantined, Served
from crashproof.teacher.shared_store.store import SharedStore
from crashproof.teacher.shared_store.tables import as_pico


class TwiceDatabase(Database):
    """One whose connection is always lost after the first commit, so that everything is done again."""

    def write(self, work):
        super().write(work)
        return super().write(work)


def test_answers_are_everybodys_and_each_account_spends_its_own(shared):
    one, other = shared.open("one"), shared.open("other")
    keep(one, "a", cost=CENT)
    (found,) = other.begin([intent("a")], budget=Decimal(0))
    keep(other, "b", cost=2 * CENT)

    assert isinstance(found, AnswerRecord)
    assert (CENT, 0, 0) == (one.spending().spent, one.spending().answers_served, one.spending().saved)
    assert (2 * CENT, 1, CENT) == (other.spending().spent, other.spending().answers_served, other.spending().saved)


def test_processes_of_one_account_share_its_budget(shared):
    one, other = shared.open(), shared.open()
    granted(one, "a", budget=CENT)
    (verdict,) = other.begin([intent("b")], budget=CENT)

    assert isinstance(verdict, OverBudget)
    assert verdict.may_change


def test_what_another_is_sending_is_busy_for_half_a_second_at_most(shared):
    granted(shared.open("one"), "a")
    (verdict,) = shared.open("other").begin([intent("a")], budget=None)

    assert isinstance(verdict, Busy)
    assert 0 < verdict.seconds <= 0.5


def test_what_nobody_renews_is_lost_in_the_account_that_began_it(shared):
    one = shared.open("one")
    granted(one, "a")
    shared.let_leases_run_out()
    doubted = one.spending()
    granted(shared.open("other"), "a")

    assert (1, CENT, 0) == (doubted.requests_in_doubt, doubted.in_doubt, doubted.reserved)
    assert doubted == one.spending()
    assert (0, CENT) == (shared.open("other").spending().requests_in_doubt, shared.open("other").spending().reserved)
    assert [] == one.problems()


def test_a_refusal_that_comes_after_the_lease_frees_the_money(shared):
    store = shared.open("one")
    request = granted(store, "a")
    shared.let_leases_run_out()
    second = granted(shared.open("other"), "a")
    store.finish([Refused(granted=request, reason="HTTP 429")])

    assert 0 == store.spending().committed
    assert isinstance(second, Granted)


def test_an_answer_that_is_being_committed_while_another_begins_is_found(shared):
    first, second = shared.open("one"), shared.open("other")
    request = granted(first, "a")
    answer = answered(request)
    is_written, may_commit = threading.Event(), threading.Event()
    database = Database(shared.url, retry_seconds=5.0, clock=SYSTEM_CLOCK)
    ledger = Ledger(database, account="one", holder="here", lease_seconds=60.0)
    record = encode(answer.as_record(timestamp=1.0, session_id="one", attempt=0))

    def finish_slowly(connection):
        ends = {request.request_id: answer}
        ledger.finish(connection, ends, {request.request_id: record}, served=Served())
        is_written.set()
        assert may_commit.wait(10)

    with ThreadPoolExecutor(2) as pool:
        finishing = pool.submit(database.write, finish_slowly)
        assert is_written.wait(10)
        beginning = pool.submit(second.begin, [intent("a")], budget=None)
        # Nothing tells that it waits; where it has not even begun, it finds the answer anyway.
        threading.Event().wait(0.2)
        may_commit.set()
        finishing.result()
        (verdict,) = beginning.result()
    database.close()

    assert {"text": "about a"} == verdict.response


def test_whatever_is_done_again_after_a_lost_connection_comes_to_the_same(shared):
    database = TwiceDatabase(shared.url, retry_seconds=5.0, clock=shared.clock)
    with SharedStore(database, account="us", lease_seconds=60.0, clock=shared.clock) as store:
        requests = store.begin([intent(each) for each in "abc"], budget=3 * CENT)
        ends = [answered(requests[0], CENT), Refused(granted=requests[1], reason="no")]
        store.finish([*ends, Lost(granted=requests[2], reason="timeout")])
        store.mark(key_of("a"), "no use")

        spending = store.spending()
        assert [Granted] * 3 == [type(each) for each in requests]
        assert (1, CENT, CENT, CENT, 0) == (
            spending.answers,
            spending.spent,
            spending.wasted,
            spending.in_doubt,
            spending.reserved,
        )
        assert [] == store.problems()


def test_an_answer_to_a_request_that_the_store_has_forgotten_is_kept_and_counted(shared):
    store = shared.open()
    request = granted(store, "a")
    shared.execute("DELETE FROM crashproof_requests")
    shared.execute("DELETE FROM crashproof_accounts")
    store.finish([answered(request, CENT)])

    assert {"text": "about a"} == store.read(key_of("a")).response
    assert (1, CENT, CENT) == (store.spending().answers, store.spending().spent, store.spending().committed)
    assert [] == store.problems()


def test_reasons_may_hold_whatever_a_server_says(shared):
    store = shared.open()
    requests = [granted(store, each) for each in "ab"]
    store.finish([Refused(granted=requests[0], reason="…\0\ud800"), Lost(granted=requests[1], reason="x" * 10_000)])

    assert [("\\u2026\\x00\\ud800", "refused"), ("x" * 500, "lost")] == sorted(
        shared.execute("SELECT reason, state FROM crashproof_requests"), key=lambda row: row[1] == "lost"
    )


def test_both_answers_of_one_batch_to_one_key_are_paid_and_the_first_is_kept(shared):
    store = shared.open()
    first = granted(store, "a")
    shared.let_leases_run_out()
    second = granted(shared.open("us"), "a")
    store.finish([answered(request, CENT) for request in (first, second)])

    spending = store.spending()
    assert (1, 2 * CENT, CENT) == (spending.answers, spending.spent, spending.wasted)
    assert 1 == shared.set_aside().count(b"about a")
    assert [] == store.problems()


def again(question: object) -> Intent:
    return structs.replace(intent(question), replaces=True)


def test_an_answer_that_another_has_already_replaced_is_given_instead_of_asking_again(shared):
    one, other = shared.open("one"), shared.open("other")
    keep(one, "a", cost=CENT)
    for store in (one, other):
        store.mark(key_of("a"), "no use")
    (request,) = one.begin([again("a")], budget=None)
    (busy,) = other.begin([again("a")], budget=None)
    one.finish([answered(request, response={"text": "better"})])
    (found,) = other.begin([again("a")], budget=None)

    assert isinstance(busy, Busy)
    assert {"text": "better"} == found.response
    assert b"about a" in shared.set_aside()
    assert [] == one.problems()


def test_an_answer_that_comes_late_takes_the_place_of_a_useless_one(shared):
    one, other = shared.open("one"), shared.open("other")
    late = granted(one, "a")
    shared.let_leases_run_out()
    other.finish([answered(granted(other, "a"), CENT, problem="it is empty", response={})])
    one.finish([answered(late, CENT)])

    assert {"text": "about a"} == other.read(key_of("a")).response
    assert (0, CENT) == (one.spending().wasted, other.spending().wasted)
    assert [] == one.problems()


def test_many_requests_go_in_one_batch(shared):
    store = shared.open()
    intents = [intent(each) for each in range(1_200)]
    store.finish([answered(request) for request in store.begin(intents, budget=None)])

    assert 1_200 == sum(isinstance(verdict, AnswerRecord) for verdict in store.begin(intents, budget=None))
    assert (1_200, 1_200) == (store.spending().answers, store.spending().answers_served)


def test_a_newer_store_is_refused_and_left_as_it_is(shared):
    shared.open().close()
    shared.execute("UPDATE crashproof_version SET version = 99")
    before = shared.content()

    with pytest.raises(NewerFormat, match="has format version 99; this crashproof reads up to version 1"):
        shared.open("others")
    assert before == shared.content()


@pytest.mark.parametrize(
    "statement, expected",
    [
        pytest.param("DELETE FROM crashproof_version", "name no version", id="no-version"),
        pytest.param("UPDATE crashproof_version SET version = -3", "name no version", id="garbled"),
        pytest.param("INSERT INTO crashproof_version VALUES (2)", "name no version", id="two-versions"),
        pytest.param("DROP TABLE crashproof_version", "name no version", id="no-table-of-versions"),
        pytest.param(
            "DROP TABLE crashproof_answers", "table crashproof_answers is missing; restore", id="no-answers"
        ),
    ],
)
def test_a_store_that_was_there_never_starts_empty(shared, statement, expected):
    keep(shared.open(), "a")
    shared.execute(statement)

    with pytest.raises(StoreUnavailable, match=expected):
        shared.open()


def test_sums_that_were_altered_are_counted_anew(shared, caplog):
    store = shared.open()
    keep(store, "a", "b", cost=CENT)
    shared.execute("UPDATE crashproof_accounts SET spent = 1, answers = 7")
    before = store.problems()
    spending = store.spending()
    keep(store, "c", cost=CENT)

    assert ["The row of account us does not match its checksum."] == before
    assert (2, 2 * CENT, 3 * CENT) == (spending.answers, spending.spent, store.spending().spent)
    assert "The sums of account us do not match their checksum" in caplog.text
    assert [] == store.problems()


def test_a_request_that_was_altered_is_named_and_written_anew_at_its_end(shared, caplog):
    store = shared.open()
    request = granted(store, "a")
    shared.execute("UPDATE crashproof_requests SET most = 1")
    before = store.problems()
    store.finish([answered(request, CENT)])

    assert f"The row of request {request.request_id} for {key_of('a')} does not match its checksum." in before
    assert f"The row of request {request.request_id} does not match its checksum" in caplog.text
    assert (CENT, 0) == (store.spending().spent, store.spending().reserved)
    assert [] == store.problems()


def test_damaged_and_missing_answers_are_named_with_their_price(shared):
    store = shared.open()
    keep(store, "a", "b", "c", "d", cost=CENT)
    shared.flip(key_of("a"), 0.5, 2)
    shared.execute(f"DELETE FROM crashproof_answers WHERE key = '{key_of('b')}'")
    shared.execute(f"UPDATE crashproof_answers SET key = 'x' WHERE key = '{key_of('c')}'")

    assert {
        f"The answer for {key_of('a')}: its checksum does not match ($0.01 was paid for it).",
        f"The answer for {key_of('b')} is missing ($0.01 was paid for it).",
        "The answer for x: it belongs to another request ($0.01 was paid for it).",
    } == set(store.problems())


def test_an_answer_under_the_key_of_another_is_not_given(shared):
    store = shared.open()
    keep(store, "a")
    shared.execute(f"UPDATE crashproof_answers SET key = '{key_of('b')}'")

    assert store.read(key_of("b")) is None
    assert b"about a" in shared.set_aside()


def test_a_damaged_answer_whose_request_is_gone_tells_the_price_that_it_still_holds(shared, caplog):
    store = shared.open()
    keep(store, "a", cost=Decimal("0.25"))
    shared.flip(key_of("a"), 0.99, 0)
    shared.execute("DELETE FROM crashproof_requests")

    assert store.read(key_of("a")) is None
    assert "($0.25 was paid for it)" in caplog.text


def test_two_that_find_the_same_damage_set_it_aside_once(shared):
    keep(shared.open(), "a", cost=CENT)
    damaged = shared.flip(key_of("a"), 0.5, 1)
    with shared.database() as database:
        ledger = Ledger(database, account="us", holder="here", lease_seconds=60.0)
        moved = [database.write(lambda connection: ledger.quarantine(connection, key_of("a"), damaged)) for _ in "12"]

    assert [Quarantined(key=key_of("a"), cost=CENT), None] == moved
    assert damaged == shared.set_aside()


def test_an_answer_that_a_later_version_wrote_is_left_as_it_is(shared):
    store = shared.open()
    keep(store, "a")
    record = add_checksum(b'{"v":99,"prompt_hash":"%b"}' % key_of("a").encode())
    shared.put(key_of("a"), record)

    with pytest.raises(UnknownRecord, match="Upgrade crashproof"):
        store.read(key_of("a"))
    assert b"" == shared.set_aside()


def test_a_request_that_was_altered_and_that_nobody_renews_can_be_sent_by_others(shared, caplog):
    granted(shared.open("one"), "a")
    shared.execute("UPDATE crashproof_requests SET reason = 'x'")
    shared.let_leases_run_out()

    assert granted(shared.open("other"), "a")
    assert "does not match its checksum; using it as it is" in caplog.text


def test_an_answer_without_its_request_is_named(shared):
    store = shared.open()
    keep(store, "a")
    shared.execute("DELETE FROM crashproof_requests")

    assert f"The answer for {key_of('a')} has no request." in store.problems()


def test_a_miss_is_explained_though_the_newest_answer_is_damaged(shared):
    store = shared.open()
    keep(store, "a", "b")
    shared.flip(key_of("b"), 0.5, 0)

    assert 'messages[0].content ("c" here, "a" stored)' in store.why_miss(intent("c").request)


def test_a_closed_store_says_so(shared):
    store = shared.open()
    store.close()
    store.close()

    with pytest.raises(StoreUnavailable, match="it is closed"):
        store.read(key_of("a"))


@pytest.mark.parametrize("account", ["", "ä", "a\n", "x" * 201], ids=["empty", "umlaut", "line-break", "long"])
def test_an_account_has_a_plain_name(shared, account):
    with pytest.raises(ConfigError, match="printable ASCII"):
        shared.open(account)


def test_a_lease_takes_time(shared):
    with pytest.raises(ConfigError, match="lease_seconds must be above 0"):
        shared.open(lease_seconds=0.0)


def test_a_file_with_any_byte_altered_gives_the_right_answers_or_none(file_store, tmp_path):
    store = file_store.open()
    keep(store, *range(30))
    store.close()
    chance = random.Random(11)
    content = file_store.path.read_bytes()
    given = 0
    for number in range(60):
        broken = SqliteFixture(tmp_path / f"broken_{number}")
        altered = bytearray(content)
        altered[chance.randrange(len(altered))] ^= 1 << chance.randrange(8)
        broken.path.write_bytes(altered)
        try:
            with broken.open() as reopened:
                for question in range(30):
                    found = reopened.read(key_of(question))
                    assert found is None or found.response == {"text": f"about {question}"}
                    given += found is not None
        except (StorageError, NewerFormat):
            pass

    assert given > 30 * 40


@pytest.mark.parametrize("dollars", ["0", "1e-12", "0.1", "0.000000150000", "123456.789", "9000000"])
def test_money_is_whole_pico_dollars_and_comes_back_exactly(dollars):
    assert Decimal(dollars) == as_dollars(as_pico(Decimal(dollars)))


def test_what_is_finer_than_a_pico_dollar_counts_as_one():
    assert [1, 2] == [as_pico(Decimal("1e-20")), as_pico(Decimal("1.0000001e-12"))]


def test_what_is_not_installed_names_its_extra():
    program = "import sys; sys.modules['sqlalchemy'] = None; import crashproof.teacher.shared_store.store"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert install_line("shared-store") in said.stderr
