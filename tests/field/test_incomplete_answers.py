"""Answers that were cut off, filtered, or ended in a way that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal

import pytest
from paid_jobs import PRICES, PaidJob, ScriptedBodies, answer_body
from teaching import http_server

from crashproof.testing import Fault, Faults, TeacherServer


@pytest.fixture
def cut_server() -> Iterator[TeacherServer]:
    """Answers three questions: one in full, one cut off, one filtered."""
    faults = Faults(script=[None, Fault.TRUNCATED, Fault.FILTERED])
    with TeacherServer(faults=faults, prices=PRICES) as server:
        yield server


def job_of(server: TeacherServer, tmp_path) -> PaidJob:
    return PaidJob(tmp_path, server.base_url, options=("--max-tokens", "200", "--concurrency", "1"))


def test_what_was_cut_off_is_paid_and_kept_but_not_written(cut_server, tmp_path):
    job = job_of(cut_server, tmp_path)

    summary = job.run(exit_code=1)

    assert (1, 2) == (summary["answers_written"], summary["failed"])
    assert {"length": 1, "content_filter": 1} == summary["incomplete"]
    assert (3, 0) == (summary["answers_bought"], summary["answers_bad"])
    assert cut_server.counts.dollars == Decimal(summary["cost"]["spent"])
    assert ["stop"] == [line["finish_reason"] for line in job.lines()]
    assert ["length", "content_filter"] == [line["finish_reason"] for line in job.failed()]
    assert all("--keep-truncated" in line["reason"] for line in job.failed())
    assert [] == job.problems()


def test_the_summary_for_people_counts_it_and_names_the_way_out(cut_server, tmp_path):
    told = job_of(cut_server, tmp_path).told(exit_code=1)

    assert "1 of 3 answers are in" in told
    assert "2 answers are incomplete (finish_reason: content_filter 1, length 1)" in told
    assert "--keep-truncated" in told


def test_with_keep_truncated_the_stored_answers_are_written_and_nothing_is_paid_again(cut_server, tmp_path):
    job = job_of(cut_server, tmp_path)
    job.run(exit_code=1)

    summary = job.run("--keep-truncated")

    assert (3, 0) == (summary["answers_written"], summary["failed"])
    assert 3 == cut_server.counts.requests
    assert ["stop", "length", "content_filter"] == [line["finish_reason"] for line in job.lines()]
    assert {"length": 1, "content_filter": 1} == summary["incomplete"]


def test_without_it_they_are_left_out_again_though_they_were_written_before(cut_server, tmp_path):
    job = job_of(cut_server, tmp_path)
    job.run("--keep-truncated")

    job.run(exit_code=1)

    assert ["stop"] == [line["finish_reason"] for line in job.lines()]
    assert 3 == cut_server.counts.requests


def test_what_was_cut_off_is_asked_anew_where_that_is_wanted(cut_server, tmp_path):
    job = job_of(cut_server, tmp_path)
    job.run(exit_code=1)

    summary = job.run("--ask-again")

    assert (3, 0, 2) == (summary["answers_written"], summary["failed"], summary["answers_bad"])
    assert 5 == cut_server.counts.requests


def run_once(body: object, tmp_path, *options: str, exit_code: int = 0, **settings) -> PaidJob:
    with http_server(ScriptedBodies([body])) as url:
        job = PaidJob(tmp_path, url, questions=("What is a keel?",), **settings)
        job.run(*options, exit_code=exit_code)
    return job


@pytest.mark.parametrize(
    "finish_reason",
    [
        "length",
        "LENGTH",
        "max_tokens",
        "MAX_TOKENS",
        "model_length",
        "content_filter",
        "SAFETY",
        "RECITATION",
        "whatever",
    ],
)
def test_every_providers_word_for_a_cut_counts(tmp_path, finish_reason):
    job = run_once(answer_body(choice={"finish_reason": finish_reason}), tmp_path, exit_code=1)

    assert [finish_reason] == [line["finish_reason"] for line in job.failed()]


@pytest.mark.parametrize("finish_reason", ["stop", "STOP", "end_turn", "stop_sequence", "eos", "COMPLETE"])
def test_every_providers_word_for_an_end_counts(tmp_path, finish_reason):
    job = run_once(answer_body(choice={"finish_reason": finish_reason}), tmp_path)

    assert [finish_reason] == [line["finish_reason"] for line in job.lines()]


def test_a_server_that_does_not_say_how_answers_end_is_said_once_and_believed(tmp_path, caplog):
    with http_server(ScriptedBodies([answer_body(choice={"finish_reason": None})])) as url:
        job = PaidJob(tmp_path, url)
        job.run()

    assert [None] * 3 == [line["finish_reason"] for line in job.lines()]
    assert 1 == sum("no finish_reason" in message for message in caplog.messages)


def test_without_a_finish_reason_an_answer_of_all_its_tokens_is_cut_off(tmp_path):
    body = answer_body(choice={"finish_reason": None})
    job = run_once(body, tmp_path, exit_code=1, options=("--max-tokens", "8"))

    assert ["length"] == [line["finish_reason"] for line in job.failed()]


@pytest.mark.parametrize("content", [None, ""], ids=["null", "empty"])
def test_an_answer_whose_tokens_went_into_thoughts_is_said_to_be_that(tmp_path, content):
    thought = answer_body(content, message={"reasoning_content": "Let me think"}, choice={"finish_reason": "length"})
    job = run_once(thought, tmp_path, exit_code=1)

    (line,) = job.failed()
    assert "length" == line["finish_reason"]
    assert "reasoning" in line["reason"]


def test_of_a_batch_the_cut_answers_are_left_out_too(tmp_path):
    job = PaidJob(tmp_path, "http://teacher.example/v1", questions=("a", "b"))
    job.run("--write-batch", tmp_path / "batch.jsonl")
    ids = [json.loads(line)["custom_id"] for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    bodies = [answer_body(), answer_body(choice={"finish_reason": "length"})]
    results = [
        {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}
        for name, body in zip(ids, bodies, strict=True)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))

    summary = job.run("--read-batch", tmp_path / "results.jsonl", exit_code=1)

    assert (1, {"length": 1}, 2) == (summary["answers_written"], summary["incomplete"], summary["answers_bought"])
