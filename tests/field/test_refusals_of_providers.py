"""What providers mean when they refuse: this request, or every one; by now, or for good."""

from __future__ import annotations

import json
from typing import Any

import pytest
from generating import generate
from teaching import completion, http_server, json_response

from crashproof.errors import TeacherRefused, TeacherUnreachable
from crashproof.reading.run_reader import RunReader
from crashproof.teacher.client.wire.refusals import refusal_of, rejected_parameter
from crashproof.teacher.client.wire.waits import seconds_asked_for
from crashproof.testing import Fault, Faults, TeacherServer

STOPS = {
    Fault.DAILY_QUOTA: "quota",
    Fault.EMPTY_BALANCE: "Insufficient Balance",
    Fault.EMPTY_BALANCE_AS_400: "credit balance is too low",
    Fault.BAD_KEY_AS_400: "API key not valid",
    Fault.NO_MODEL_AS_400: "Model Not Exist",
    Fault.WRONG_REGION: "region, or territory not supported",
}
NOW = 1_700_000_000.0


@pytest.mark.parametrize(("fault", "words"), STOPS.items())
def test_what_all_requests_would_be_told_stops_the_job_at_once_in_the_providers_words(tmp_path, fault, words):
    with (
        TeacherServer(faults=Faults(share=1, kinds=[fault], most_in_a_row=999)) as server,
        pytest.raises(TeacherRefused, match=words) as refusal,
    ):
        generate(tmp_path, server.base_url, "--concurrency", 4)

    assert server.counts.requests <= 4
    assert refusal.value.hint
    assert 0 == RunReader.open(tmp_path / "D.run").session().api_requests_in_doubt


def test_a_wait_beyond_the_deadline_is_told_and_stops_the_job(tmp_path):
    with (
        TeacherServer(faults=Faults(share=1, kinds=[Fault.LONG_WAIT], most_in_a_row=999)) as server,
        pytest.raises(TeacherUnreachable, match="asks to wait 5 h") as refusal,
    ):
        generate(tmp_path, server.base_url, "--concurrency", 4)

    assert server.counts.requests <= 4
    assert "in 5 h" in refusal.value.hint


def test_a_wait_that_only_the_message_names_is_kept(tmp_path):
    with TeacherServer(faults=Faults(script=[Fault.RATE_LIMITED_IN_WORDS])) as server:
        result = generate(tmp_path, server.base_url, num_prompts=1)

    assert (0, 2) == (result.exit_code, server.counts.requests)


def test_a_limit_under_its_other_name_is_learned_from_one_refusal(tmp_path, caplog):
    with TeacherServer(refuses=["max_tokens"]) as server:
        result = generate(tmp_path, server.base_url, "--max-tokens", 20, "--concurrency", 2, "--keep-truncated")
        counts = server.counts

    assert 0 == result.exit_code
    assert (40, True) == (counts.answers_computed, counts.requests <= 42)
    assert 1 == caplog.text.count("is sent as max_completion_tokens from here on")


@pytest.mark.parametrize("model", ["gpt-5-mini", "o3", "o4-mini-2025-04-16", "openai/gpt-5", "gpt-5.2"])
def test_a_limit_under_its_other_name_is_known_by_the_model(tmp_path, model):
    with TeacherServer(refuses=["max_tokens"], models=[model]) as server:
        generate(tmp_path, server.base_url, "--max-tokens", 20, num_prompts=3, model=model)

        assert (3, 3) == (server.counts.requests, server.counts.answers_computed)
        assert 20 == server.requests_seen[0].body["max_completion_tokens"]


def test_a_server_that_knows_only_the_old_name_is_given_that(tmp_path):
    with TeacherServer(refuses=["max_completion_tokens"], models=["gpt-5-mini"]) as server:
        result = generate(
            tmp_path, server.base_url, "--max-tokens", 20, "--keep-truncated", num_prompts=3, model="gpt-5-mini"
        )

    assert (0, 3) == (result.exit_code, server.counts.answers_computed)


def test_a_server_that_takes_neither_name_stops_the_job(tmp_path):
    with (
        TeacherServer(refuses=["max_completion_tokens", "max_tokens"]) as server,
        pytest.raises(TeacherRefused, match="max_completion_tokens") as refusal,
    ):
        generate(tmp_path, server.base_url, "--max-tokens", 20, "--concurrency", 2)

    assert server.counts.requests <= 4
    assert "Leave out the parameter" in refusal.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.5"),
        ("top_p", "0.9"),
        ("logprobs", "true"),
        ("seed", "7"),
        ("response_format", '{"type": "json_object"}'),
        ("stop", '["."]'),
    ],
)
def test_another_parameter_that_the_model_does_not_take_stops_the_job(tmp_path, name, value):
    with (
        TeacherServer(refuses=[name]) as server,
        pytest.raises(TeacherRefused, match=f"Unsupported parameter: '{name}'") as refusal,
    ):
        generate(tmp_path, server.base_url, "--parameter", f"{name}={value}", "--concurrency", 2)

    assert server.counts.requests <= 2
    assert name in refusal.value.hint


def test_a_parameter_of_one_prompt_alone_is_that_prompts_failure(tmp_path):
    def answer(request: Any) -> Any:
        if "7 +" in request.body.decode():
            return json_response({"error": {"message": "'seed' is not supported", "param": "seed"}}, status=400)
        return json_response(completion())

    with http_server(answer) as url:
        result = generate(tmp_path, url, num_prompts=10)

    assert 1 == result.exit_code
    assert 1 == len((tmp_path / "D.failed.jsonl").read_text().splitlines())


FINAL = [
    (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    (429, {"message": "Your account balance is insufficient", "type": "exceeded_current_quota_error"}),
    (403, {"message": "insufficient_user_quota", "code": "insufficient_user_quota"}),
    (400, {"message": "Access denied, please make sure your account is in good standing.", "code": "Arrearage"}),
    (402, {"message": "This request requires more credits, or fewer max_tokens."}),
    (429, {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock more."}),
    (429, {"message": "Rate limit reached on tokens per day (TPD): Limit 500000. Please try again in 7m12s."}),
    (429, {"message": "Daily limit exceeded"}),
    (400, {"message": "The model `gpt-9` does not exist"}),
    (400, {"message": "gpt-9 is not a valid model ID"}),
    (400, {"message": "User location is not supported for the API use.", "status": "FAILED_PRECONDITION"}),
    (403, {"message": "Your organization must be verified to use this model."}),
    (401, {"message": "anything"}),
    (404, {"message": "The API deployment for this resource does not exist.", "code": "DeploymentNotFound"}),
    (400, {"message": "Missing required query parameter: api-version"}),
]


@pytest.mark.parametrize(("status", "error"), FINAL, ids=lambda value: json.dumps(value)[:50])
@pytest.mark.parametrize("has_wait", [True, False])
def test_words_that_mean_every_request_are_known(status, error, has_wait):
    refusal = refusal_of(status, error, has_wait=has_wait)

    assert (False, True) == (refusal.is_retryable, refusal.hits_all)


@pytest.mark.parametrize(
    ("status", "error", "has_wait", "is_retryable"),
    [
        (429, {"message": "You exceeded your current quota, please check your billing details."}, True, True),
        (429, {"message": "Rate limit reached on requests per min (RPM)."}, False, True),
        (503, {"message": "insufficient resources, daily maintenance"}, False, True),
        (400, {"message": "This model's maximum context length is 8192 tokens."}, False, False),
        (400, {"message": "Your prompt was blocked by the content filter.", "code": "content_filter"}, False, False),
        (403, {"message": "This content is not allowed."}, False, False),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_words_that_mean_this_request_or_this_minute_stop_no_job(status, error, has_wait, is_retryable):
    refusal = refusal_of(status, error, has_wait=has_wait)

    assert (is_retryable, False) == (refusal.is_retryable, refusal.hits_all)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "Unsupported value: 'temperature' does not support 0.5", "param": "temperature"}, "temperature"),
        ({"message": "`temperature` and `top_p` cannot both be specified"}, "temperature"),
        ({"detail": [{"loc": ["body", "top_p"], "msg": "Extra inputs are not permitted"}]}, "top_p"),
        ({"message": "top_p: Extra inputs are not permitted"}, "top_p"),
        ({"message": "invalid", "param": "response_format.json_schema"}, "response_format"),
        ({"message": "maximum context length exceeded: max_tokens too large", "param": "max_tokens"}, None),
        ({"message": "invalid role", "param": "messages[0].role"}, None),
        ({"message": "temperature rises"}, None),
    ],
)
def test_the_parameter_that_is_refused_is_found(error, expected):
    names = ("messages", "model", "temperature", "top_p", "max_tokens", "response_format")

    assert expected == rejected_parameter(error, dict.fromkeys(names, 1))


@pytest.mark.parametrize(
    ("headers", "message", "expected"),
    [
        ({"retry-after": "18000"}, "", 18000.0),
        ({"retry-after": "1.5"}, "", 1.5),
        ({"retry-after": "-3"}, "", 0.0),
        ({"retry-after": "1e400"}, "", None),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:30 GMT"}, "", 10.0),
        ({"retry-after": "2023-11-14T22:13:30Z"}, "", 10.0),
        ({"retry-after": "34s"}, "", 34.0),
        ({"retry-after": "soon"}, "", None),
        ({"retry-after-ms": "250", "retry-after": "1"}, "", 0.25),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0"}, "", 360.0),
        ({"x-ratelimit-reset-tokens": "20ms", "x-ratelimit-remaining-tokens": "0"}, "", 0.02),
        ({"x-ratelimit-reset-tokens": "20ms", "x-ratelimit-remaining-tokens": "9"}, "", None),
        ({"x-ratelimit-reset": "1700000007000", "x-ratelimit-remaining": "0"}, "", 7.0),
        ({"x-ratelimit-reset": "1700000007", "x-ratelimit-remaining": "0"}, "", 7.0),
        ({}, "Please try again in 7.66s. Visit https://example.com", 7.66),
        ({}, "Please try again in 1m12.5s.", 72.5),
        ({}, "Please try again in 20ms.", 0.02),
        ({}, "Please retry after 26 seconds.", 26.0),
        ({}, "Please wait 2 hours and 5 minutes.", 7500.0),
        ({}, "Try again later, in 2024.", None),
    ],
)
def test_a_wait_is_read_wherever_it_is_said(headers, message, expected):
    body = json.dumps({"error": {"message": message}}).encode()

    assert expected == seconds_asked_for(headers, body, now=NOW)


def test_a_wait_is_read_from_the_details_of_an_error():
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}]

    assert 34.0 == seconds_asked_for({}, json.dumps([{"error": {"details": details}}]).encode(), now=NOW)
