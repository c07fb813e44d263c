from __future__ import annotations

import math

import msgspec
import pytest

from holdfast.disk.journal import Journal
from holdfast.disk.patient import PatientJournal
from holdfast.records import AnswerRecord, JournalMark, nonfinite_names
from holdfast.responses import AnswerStore
from holdfast.testing import FaultyDisk


def answer(key: str, response: dict | None = None) -> AnswerRecord:
    response = {"text": f"about {key}"} if response is None else response
    names = nonfinite_names({"response": response})
    return AnswerRecord(
        timestamp=1.0,
        session_id="training_1",
        attempt=1,
        prompt_hash=key,
        cost=0.5,
        response=response,
        nonfinite=names or msgspec.UNSET,
    )


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "api_recovery.jsonl"


@pytest.fixture
def open_store(path):
    journals = []

    def open_it(**how) -> AnswerStore:
        journals.append(Journal(path, mark=JournalMark(), **how))
        return AnswerStore(PatientJournal(journals[-1]))

    yield open_it
    for journal in journals:
        journal.close()


def keep(store: AnswerStore, record: AnswerRecord) -> None:
    store.publish(store.append(record))


def test_an_answer_is_given_to_whoever_asks_by_its_key(open_store):
    store = open_store()
    keep(store, answer("a"))
    keep(store, answer("b", {"choices": [{"text": "zwölf"}], "n": 3}))

    assert {"text": "about a"} == store.get("a")
    assert {"choices": [{"text": "zwölf"}], "n": 3} == store.get("b")


def test_an_unknown_key_has_no_answer(open_store):
    assert open_store().get("a") is None


def test_an_answer_outlives_its_process(open_store):
    keep(open_store(), answer("a"))

    assert {"text": "about a"} == open_store().get("a")


def test_the_newest_answer_under_a_key_counts(open_store):
    store = open_store()
    keep(store, answer("a", {"text": "old"}))
    keep(store, answer("a", {"text": "new"}))

    assert [{"text": "new"}] * 2 == [store.get("a"), open_store().get("a")]


def test_nobody_is_given_an_answer_before_it_is_published(open_store):
    store = open_store()
    place = store.append(answer("a"))
    before = store.get("a")
    store.publish(place)

    assert (None, {"text": "about a"}) == (before, store.get("a"))


def test_a_published_answer_survives_a_power_loss(path, open_store, tmp_path):
    disk = FaultyDisk(path.parent, tmp_path / "scratch")
    keep(open_store(disk=disk), answer("a"))
    disk.after_power_loss(tmp_path / "left", "strict")

    assert path.read_bytes() == (tmp_path / "left" / path.name).read_bytes()


def test_an_answer_of_a_killed_predecessor_is_synced_before_it_is_given(path, open_store, tmp_path):
    open_store().append(answer("a"))
    (tmp_path / "empty").mkdir()
    disk = FaultyDisk(path.parent, tmp_path / "scratch")
    found = open_store(disk=disk).get("a")
    disk.after_power_loss(tmp_path / "left", "strict")

    assert {"text": "about a"} == found
    assert b"about a" in (tmp_path / "left" / path.name).read_bytes()


def test_an_answer_that_rots_while_the_run_lives_is_told_and_not_given(path, open_store, caplog):
    store = open_store()
    keep(store, answer("a"))
    path.write_bytes(path.read_bytes().replace(b"about a", b"about X"))

    assert store.get("a") is None
    assert 1 == len(caplog.messages)
    assert "The answer for a at byte 0" in caplog.messages[0]


def test_a_damaged_line_does_not_hide_its_neighbours(path, open_store):
    store = open_store()
    for key in ("a", "b", "c"):
        keep(store, answer(key))
    path.write_bytes(path.read_bytes().replace(b"about b", b"about X"))
    reopened = open_store()

    assert [{"text": "about a"}, None, {"text": "about c"}] == [reopened.get(key) for key in ("a", "b", "c")]


def test_numbers_that_json_cannot_hold_come_back(open_store):
    keep(open_store(), answer("a", {"logprob": -math.inf}))

    assert {"logprob": -math.inf} == open_store().get("a")


def test_changing_what_was_given_does_not_change_the_next_answer(open_store):
    store = open_store()
    keep(store, answer("a"))
    store.get("a")["text"] = "changed"

    assert {"text": "about a"} == store.get("a")
