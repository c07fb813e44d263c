"""What a status and a body mean together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teaching import completion

from crashproof.teacher.replies.errors import error_in


def error_of(content, status=200):
    return error_in(status, json.dumps(content).encode())


@pytest.mark.parametrize(
    "content, status, is_retryable, may_be_paid",
    [
        pytest.param({"error": {"message": "no", "code": 429}}, 429, True, False, id="status as code"),
        pytest.param({"error": {"message": "no", "code": "503"}}, 503, True, False, id="status as text"),
        pytest.param({"error": {"message": "no", "status": 502}}, 502, True, True, id="status"),
        pytest.param({"error": {"message": "no", "code": 400}}, 400, False, False, id="status that stays"),
        pytest.param({"error": {"message": "no"}}, None, True, True, id="no status"),
        pytest.param({"error": {"message": "no", "code": "x"}}, None, True, True, id="an unknown word"),
        pytest.param({"error": {"message": "no", "code": 99}}, None, True, True, id="no such status"),
        pytest.param({"error": "no"}, None, True, True, id="text"),
        pytest.param({"error": {"message": "no"}, "choices": []}, None, True, True, id="with empty choices"),
        pytest.param({"error": {"message": "no", "code": [1]}}, None, True, True, id="a list"),
        pytest.param({"error": {"message": "no", "type": "overloaded_error"}}, 503, True, False, id="type alone"),
    ],
)
def test_the_code_within_a_success_decides_as_a_status_would(content, status, is_retryable, may_be_paid):
    error = error_of(content)

    assert (status, is_retryable, may_be_paid) == (error.status, error.is_retryable, error.may_have_been_paid)
    assert "an error instead of an answer: no" == error.told


@pytest.mark.parametrize(
    "content",
    [
        completion(),
        completion() | {"error": None},
        completion() | {"error": "a warning"},
        completion() | {"error": {}},
        completion() | {"error": {"code": 0, "message": ""}},
        completion() | {"base_resp": {"status_code": 0, "status_msg": "success"}},
        completion() | {"choices": []},
    ],
    ids=["answer", "null", "warning", "empty", "code of success", "base_resp of success", "paid without choices"],
)
def test_what_was_generated_is_no_error(content):
    assert error_of(content) is None


@pytest.mark.parametrize("status", [200, 400, 429, 500, 503])
@given(body=st.binary(max_size=30) | st.sampled_from([b"{", b"[[", b'{"choices"', b"null", b'"x"', b"{}"]))
def test_any_body_is_judged(status, body):
    error = error_in(status, body)

    assert status == 200 or error.status == status


def test_a_damaged_answer_is_kept_and_no_error():
    assert error_in(200, b'{"choices": [{"mess') is None
