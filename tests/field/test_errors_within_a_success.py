"""Errors that a server sends with a status of success."""

from __future__ import annotations

import json

import pytest
from paid_jobs import PRICES, PaidJob, ScriptedBodies, answer_body
from teaching import http_server

from crashproof.testing import Fault, Faults, TeacherServer

PASSING = [
    Fault.ERROR_TEXT,
    Fault.ERROR_LIST,
    Fault.ERROR_DETAIL,
    Fault.RATE_LIMITED_IN_CHOICE,
    Fault.RATE_LIMITED_IN_BODY,
    Fault.NO_CHOICES,
    Fault.NULL_BODY,
    Fault.EMPTY_BODY,
    Fault.BROKEN_OFF,
]
NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("fault", PASSING)
def test_an_error_within_a_success_is_tried_again_and_the_answer_is_written(tmp_path, fault):
    with TeacherServer(faults=Faults(script=[fault]), prices=PRICES) as server:
        job = PaidJob(tmp_path, server.base_url, questions=("What is a keel?",))
        summary = job.run("--budget", "1.00")
        counts = server.counts

    assert (1, 2) == (summary["answers_written"], counts.requests)
    assert (1, 0) == (summary["answers_bought"], summary["answers_bad"])
    assert "stop" == job.lines()[0]["finish_reason"]
    paid = float(summary["cost"]["spent"]) + float(summary["cost"]["in_doubt"])
    assert float(counts.dollars) <= paid
    assert (
        fault.is_charged
        or fault not in (Fault.RATE_LIMITED_IN_BODY, Fault.NO_CHOICES)
        or paid == float(counts.dollars)
    )


@pytest.mark.parametrize(
    "body, words",
    [
        pytest.param(
            {"choices": None, "usage": NO_TOKENS, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
            "rate limit",
            id="MiniMax",
        ),
        pytest.param({"choices": [], "usage": NO_TOKENS, "trace": "a-51"}, '"trace":"a-51"', id="no choices"),
        pytest.param({"id": "x"}, '{"id":"x"}', id="an object"),
        pytest.param({"error": "It is on fire."}, "It is on fire.", id="text"),
        pytest.param({"error": [{"message": "It is on fire."}]}, "It is on fire.", id="list within"),
        pytest.param([{"error": {"code": 503, "message": "It is on fire."}}], "It is on fire.", id="list"),
        pytest.param({"detail": "It is on fire."}, "It is on fire.", id="FastAPI"),
        pytest.param(
            {"success": False, "errors": [{"code": 7000, "message": "It is on fire."}]},
            "It is on fire.",
            id="Cloudflare",
        ),
        pytest.param(
            {"object": "error", "message": "It is on fire.", "code": 500}, "It is on fire.", id="vLLM of old"
        ),
        pytest.param(
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "Overloaded",
            id="Anthropic",
        ),
        pytest.param(
            {"error": {"code": 502, "message": "Provider returned error", "metadata": {"raw": "It is on fire."}}},
            "It is on fire.",
            id="OpenRouter, raw",
        ),
        pytest.param(
            answer_body("Half a", choice={"finish_reason": "error"}),
            "finish_reason 'error'",
            id="finish reason alone",
        ),
        pytest.param(answer_body("Half a", choice={"finish_reason": "abort"}), "finish_reason 'abort'", id="aborted"),
        pytest.param(b"<html><body>Gateway says no</body></html>", "Gateway says no", id="page"),
        pytest.param(b"upstream connect error", "upstream connect error", id="text that is called JSON"),
        pytest.param(b'"a string"', "a string", id="JSON string"),
        pytest.param(b"", "an empty body", id="nothing"),
    ],
)
def test_it_is_retried_within_bounds_and_the_servers_words_are_told(tmp_path, body, words):
    teacher = ScriptedBodies([body])
    with http_server(teacher) as url:
        job = PaidJob(tmp_path, url, questions=("What is a keel?",))
        told = job.error("--attempts", "2")

    assert 2 == teacher.num_sent
    assert words in " ".join(told.split())


@pytest.mark.parametrize(
    "error",
    [
        pytest.param({"error": {"code": 402, "message": "Out of money"}}, id="OpenRouter"),
        pytest.param({"error": {"code": "402", "message": "Out of money"}}, id="as text"),
        pytest.param({"error": {"code": "insufficient_quota", "message": "Out of money"}}, id="OpenAI"),
        pytest.param({"error": {"type": "authentication_error", "message": "Out of money"}}, id="type alone"),
        pytest.param(
            {"choices": None, "usage": NO_TOKENS, "base_resp": {"status_code": 1008, "status_msg": "Out of money"}},
            id="MiniMax",
        ),
        pytest.param({"code": "Arrearage", "message": "Out of money", "request_id": "r"}, id="DashScope"),
    ],
)
def test_what_would_hit_every_prompt_stops_the_job_at_once(tmp_path, error):
    teacher = ScriptedBodies([error])
    with http_server(teacher) as url:
        job = PaidJob(tmp_path, url, options=("--max-tokens", "200", "--concurrency", "1"))
        told = job.error()

    assert 1 == teacher.num_sent
    assert "Out of money" in told


@pytest.mark.parametrize(
    "error",
    [
        pytest.param({"error": {"code": 400, "message": "Not this one"}}, id="status"),
        pytest.param({"error": {"code": "context_length_exceeded", "message": "Not this one"}}, id="OpenAI"),
        pytest.param({"error": {"type": "invalid_request_error", "message": "Not this one"}}, id="type alone"),
        pytest.param(
            {"choices": None, "base_resp": {"status_code": 1026, "status_msg": "Not this one"}}, id="MiniMax"
        ),
        pytest.param([{"error": {"status": "INVALID_ARGUMENT", "message": "Not this one"}}], id="Gemini"),
    ],
)
def test_what_hits_one_prompt_is_not_retried_and_the_others_are_answered(tmp_path, error):
    teacher = ScriptedBodies([error, answer_body()])
    with http_server(teacher) as url:
        job = PaidJob(tmp_path, url, options=("--max-tokens", "200", "--concurrency", "1"))
        summary = job.run(exit_code=1)

    assert (2, 3) == (summary["answers_written"], teacher.num_sent)
    assert ["Not this one" in line["reason"] for line in job.failed()] == [True]
    assert (0, "0") == (summary["requests_in_doubt"], summary["cost"]["wasted"])


def test_a_part_of_an_answer_with_an_error_is_no_answer_but_may_be_paid(tmp_path):
    half = answer_body("A keel is", choice={"finish_reason": "error", "error": {"code": 429, "message": "Later"}})
    with http_server(ScriptedBodies([half, answer_body()])) as url:
        job = PaidJob(tmp_path, url, questions=("What is a keel?",))
        summary = job.run()

    assert ["A keel is a long timber."] == [line["teacher_text"] for line in job.lines()]
    assert 1 == summary["requests_in_doubt"]


def test_tokens_without_choices_were_paid_for_and_are_not_asked_again(tmp_path):
    teacher = ScriptedBodies([answer_body() | {"choices": []}])
    with http_server(teacher) as url:
        job = PaidJob(tmp_path, url, questions=("What is a keel?",))
        summary = job.run(exit_code=1)

    assert (1, 1, 1) == (teacher.num_sent, summary["answers_bought"], summary["answers_bad"])


def test_in_a_batch_an_error_within_a_success_is_a_failure_with_its_words(tmp_path):
    job = PaidJob(tmp_path, "http://teacher.example/v1", questions=("a", "b"))
    job.run("--write-batch", tmp_path / "batch.jsonl")
    ids = [json.loads(line)["custom_id"] for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    bodies = [answer_body(), {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}]
    results = [
        {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}
        for name, body in zip(ids, bodies, strict=True)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))

    summary = job.run("--read-batch", tmp_path / "results.jsonl", exit_code=1)

    assert (1, 1) == (summary["answers_written"], summary["answers_bought"])
    assert ["rate limit" in line["reason"] for line in job.failed()] == [True]
