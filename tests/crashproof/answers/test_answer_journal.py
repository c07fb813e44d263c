from __future__ import annotations

import math
from decimal import Decimal

import msgspec
import pytest

from crashproof.answers.answer_journal import AnswerJournal
from crashproof.answers.store import OverBudget
from crashproof.disk.journal import Journal
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.records.lines.codec import nonfinite_names
from crashproof.records.requests import AnswerRecord, Spending, price_left_in
from crashproof.records.snapshots import JournalMark
from crashproof.rules.requests import teacher_request
from crashproof.testing import FaultyDisk


def answer(key: str, response: dict | None = None, **others) -> AnswerRecord:
    response = {"text": f"about {key}"} if response is None else response
    return AnswerRecord(
        timestamp=1.0,
        session_id="training_1",
        attempt=1,
        prompt_hash=key,
        cost=Decimal("0.5"),
        response=response,
        nonfinite=nonfinite_names({"response": response}) or msgspec.UNSET,
        **others,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "progress").mkdir()
    return RunFolder(tmp_path / "progress")


@pytest.fixture
def path(folder):
    return folder.answers


@pytest.fixture
def open_journal(folder, path):
    journals = []

    def open_it(**how) -> AnswerJournal:
        journals.append(Journal(path, mark=JournalMark(), **how))
        return AnswerJournal(QueueingJournal(journals[-1]), folder, **how)

    yield open_it
    for journal in journals:
        journal.close()


def keep(answers: AnswerJournal, *records: AnswerRecord) -> None:
    answers.publish([answers.append(record) for record in records])


def text_under(answers: AnswerJournal, key: str) -> str | None:
    found = answers.get(key)
    return None if found is None else found.response["text"]


def test_an_answer_is_given_to_whoever_asks_by_its_key(open_journal):
    answers = open_journal()
    keep(answers, answer("a"), answer("b", {"choices": [{"text": "zwölf"}], "n": 3}))

    assert {"text": "about a"} == answers.get("a").response
    assert {"choices": [{"text": "zwölf"}], "n": 3} == answers.get("b").response


def test_an_unknown_key_has_no_answer(open_journal):
    assert open_journal().get("a") is None


def test_an_answer_outlives_its_process(open_journal):
    keep(open_journal(), answer("a"))

    assert "about a" == text_under(open_journal(), "a")


def test_the_newest_answer_under_a_key_counts(open_journal):
    answers = open_journal()
    keep(answers, answer("a", {"text": "old"}))
    keep(answers, answer("a", {"text": "new"}))

    assert ["new"] * 2 == [text_under(answers, "a"), text_under(open_journal(), "a")]


def test_nobody_is_given_an_answer_before_it_is_published(open_journal):
    answers = open_journal()
    answers.load_index()
    offset = answers.append(answer("a"))
    before = answers.get("a")
    answers.publish([offset])

    assert (None, "about a") == (before, text_under(answers, "a"))


def test_a_published_answer_survives_a_power_loss(path, open_journal, tmp_path):
    disk = FaultyDisk(path.parent, tmp_path / "scratch")
    keep(open_journal(disk=disk), answer("a"))
    disk.after_power_loss(tmp_path / "left", "strict")

    assert path.read_bytes() == (tmp_path / "left" / path.name).read_bytes()


def test_an_answer_of_a_killed_predecessor_is_synced_before_it_is_given(path, open_journal, tmp_path):
    open_journal().append(answer("a"))
    (tmp_path / "empty").mkdir()
    disk = FaultyDisk(path.parent, tmp_path / "scratch")
    found = open_journal(disk=disk).get("a")
    disk.after_power_loss(tmp_path / "left", "strict")

    assert {"text": "about a"} == found.response
    assert b"about a" in (tmp_path / "left" / path.name).read_bytes()


def test_an_answer_that_rots_while_the_run_lives_is_set_aside_with_its_price(folder, path, open_journal, caplog):
    answers = open_journal()
    keep(answers, answer("a"))
    path.write_bytes(path.read_bytes().replace(b"about a", b"about X"))

    assert answers.get("a") is None
    assert answers.get("a") is None
    assert 1 == len(caplog.messages)
    assert "The answer for a at byte 0" in caplog.messages[0]
    assert "$0.5 was paid" in caplog.messages[0]
    assert b"about X" in (folder.quarantine / path.name).read_bytes()


def test_a_damaged_line_does_not_hide_its_neighbours(path, open_journal):
    keep(open_journal(), *(answer(key) for key in ("a", "b", "c")))
    path.write_bytes(path.read_bytes().replace(b"about b", b"about X"))
    reopened = open_journal()

    assert ["about a", None, "about c"] == [text_under(reopened, key) for key in ("a", "b", "c")]


def test_the_saved_index_spares_reading_the_answers_and_tells_the_same(path, open_journal):
    answers = open_journal()
    keep(answers, answer("a"), answer("b"))
    answers.save_index()
    keep(answers, answer("c"))

    assert ["about a", "about b", "about c"] == [text_under(open_journal(), key) for key in ("a", "b", "c")]


def test_an_index_of_other_answers_is_made_again(path, open_journal):
    answers = open_journal()
    keep(answers, answer("a"), answer("b"))
    answers.save_index()
    path.write_bytes(b"")
    keep(open_journal(), answer("c"))

    assert [None, "about c"] == [text_under(open_journal(), key) for key in ("a", "c")]


def test_an_answer_that_is_not_published_yet_is_found_after_the_index_was_saved(open_journal):
    answers = open_journal()
    keep(answers, answer("a"))
    answers.append(answer("b"))
    answers.save_index()

    assert "about b" == text_under(open_journal(), "b")


def test_numbers_that_json_cannot_hold_come_back(open_journal):
    keep(open_journal(), answer("a", {"logprob": -math.inf}))

    assert {"logprob": -math.inf} == open_journal().get("a").response


def test_changing_what_was_given_does_not_change_the_next_answer(open_journal):
    answers = open_journal()
    keep(answers, answer("a"))
    answers.get("a").response["text"] = "changed"

    assert "about a" == text_under(answers, "a")


def test_a_miss_is_explained_by_the_nearest_request(open_journal):
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    answers = open_journal()
    for heat in (0.5, 0.7):
        asked = teacher_request("http://host/v1", body | {"temperature": heat})
        keep(answers, answer(asked.key, request=asked.as_record()))

    wanted = teacher_request("http://host/v1", body | {"temperature": 1})

    assert "The nearest stored request differs in temperature (1 here, 0.7 stored)." == answers.why_miss(wanted)


@pytest.mark.parametrize(
    "line, expected",
    [
        pytest.param(b'{"v":1,"cost":0.25,"respXnse":{}', Decimal("0.25"), id="readable"),
        pytest.param(b'{"v":1,"cost":1E-7,"x":0', Decimal("1e-7"), id="with-an-exponent"),
        pytest.param(b'{"v":1,"cXst":0.25,', None, id="altered-itself"),
        pytest.param(b'{"v":1,"cost":0.2', None, id="cut"),
    ],
)
def test_a_broken_line_still_tells_its_price(line, expected):
    assert expected == price_left_in(line)


@pytest.mark.parametrize("reserved, expected", [(Decimal("0.01"), True), (Decimal(0), False)])
def test_a_refusal_for_money_may_change_while_requests_hold_some(reserved, expected):
    assert expected is OverBudget(spending=Spending(reserved=reserved)).may_change
