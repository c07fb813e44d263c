from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof.errors import DataError, InputError
from crashproof.teacher.jobs.batch_files import BatchResult, batch_line, batches, read_batch_results
from crashproof.teacher.jobs.prompts import read_prompts

BODY = {"model": "m", "messages": [{"role": "user", "content": "Grüße"}]}
COMPLETION = {"id": "chatcmpl-1", "choices": [{"message": {"role": "assistant", "content": "Hi"}}]}
EXPIRED = {"code": "batch_expired", "message": "This request could not be executed in time."}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_lines(*lines: Any) -> Path:
        path = tmp_path / "results.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write_lines


def response(status: int, body: Any) -> dict[str, Any]:
    return {"status_code": status, "request_id": "req_1", "body": body}


def result(**fields: Any) -> dict[str, Any]:
    return {"id": "batch_req_1", "custom_id": "one", "response": None, "error": None} | fields


def test_a_request_of_a_batch_is_a_prompt_again(tmp_path: Path) -> None:
    (file,) = batches([batch_line("one", BODY)])
    path = tmp_path / "batch.jsonl"
    path.write_bytes(file.content)

    (prompt,) = read_prompts(path)

    assert ("one", BODY["messages"], {"model": "m"}) == (prompt.custom_id, prompt.messages, prompt.parameters)


def test_no_requests_make_no_file() -> None:
    assert [] == list(batches([]))


@pytest.mark.parametrize(
    "most_lines, most_bytes, expected",
    [
        pytest.param(10, 10_000, [["0", "1", "2", "3", "4"]], id="all-fit"),
        pytest.param(2, 10_000, [["0", "1"], ["2", "3"], ["4"]], id="lines"),
        pytest.param(5, 10_000, [["0", "1", "2", "3", "4"]], id="just-as-many-lines"),
        pytest.param(10, 400, [["0", "1", "2"], ["3", "4"]], id="bytes"),
    ],
)
def test_requests_fill_one_file_after_the_other(most_lines: int, most_bytes: int, expected: list[list[str]]) -> None:
    lines = [batch_line(str(number), BODY) for number in range(5)]

    assert expected == [file.custom_ids for file in batches(lines, most_lines, most_bytes)]


@given(st.lists(st.text(max_size=50), max_size=12), st.integers(1, 5), st.integers(200, 600))
def test_files_hold_every_request_once_in_order_and_within_both_limits(
    contents: list[str], most_lines: int, most_bytes: int
) -> None:
    lines = [batch_line(str(number), {"messages": content}) for number, content in enumerate(contents)]

    try:
        files = list(batches(lines, most_lines, most_bytes))
    except InputError:
        assert any(len(json.dumps(line, ensure_ascii=False).encode()) + 1 > most_bytes - 20 for line in lines)
        return

    assert lines == [json.loads(line) for file in files for line in file.content.split(b"\n") if line]
    assert [] == [file for file in files if len(file.custom_ids) > most_lines or len(file.content) > most_bytes]
    assert [] == [file for file in files if len(file.custom_ids) != file.content.count(b"\n")]


def test_a_request_that_no_file_can_hold_is_named() -> None:
    with pytest.raises(InputError, match="The request two has"):
        list(batches([batch_line("one", {}), batch_line("two", BODY)], most_bytes=100))


def test_results_are_read_in_the_order_of_the_file(write: Write) -> None:
    path = write(
        result(custom_id="two", response=response(200, COMPLETION)),
        result(custom_id="one", error=EXPIRED),
    )

    assert [
        BatchResult(line=1, custom_id="two", body=COMPLETION, failure=None, status=200),
        BatchResult(
            line=2,
            custom_id="one",
            body=None,
            failure="batch_expired: This request could not be executed in time.",
            status=None,
        ),
    ] == list(read_batch_results(path))


def test_a_file_without_results_is_none() -> None:
    assert [] == list(read_batch_results(Path("/dev/null")))


@pytest.mark.parametrize(
    "fields, expected",
    [
        pytest.param({"error": EXPIRED}, "batch_expired: This request", id="never-sent"),
        pytest.param({"error": {"message": "Gone."}}, "Gone.", id="without-a-code"),
        pytest.param({"error": {}}, "no reason given", id="without-words"),
        pytest.param({"error": "Gone."}, "Gone.", id="text"),
        pytest.param(
            {"response": response(400, {"error": {"code": "bad", "message": "No such model."}})},
            "HTTP 400: bad: No such model.",
            id="refused",
        ),
        pytest.param({"response": response(500, None)}, "HTTP 500: no reason given", id="no-body"),
        pytest.param({"response": response(502, "Bad gateway")}, "HTTP 502: Bad gateway", id="body-that-is-text"),
        pytest.param({"response": response(200, COMPLETION), "error": EXPIRED}, "HTTP 200: batch_expired", id="both"),
    ],
)
def test_a_failure_says_why(write: Write, fields: dict[str, Any], expected: str) -> None:
    (failed,) = read_batch_results(write(result(**fields)))

    assert failed.body is None
    assert (failed.failure or "").startswith(expected)


@pytest.mark.parametrize(
    "line, expected",
    [
        pytest.param([], "it is not a JSON object", id="no-object"),
        pytest.param(result(custom_id=None, error=EXPIRED), '"custom_id"', id="no-name"),
        pytest.param(result(custom_id=5, error=EXPIRED), '"custom_id"', id="name-that-is-a-number"),
        pytest.param(result(), '"response" or an "error"', id="neither"),
        pytest.param(result(response="ok"), '"status_code"', id="response-that-is-text"),
        pytest.param(result(response={"body": {}}), '"status_code"', id="no-status"),
        pytest.param(result(response=response(True, {})), '"status_code"', id="status-that-is-true"),
        pytest.param(result(response=response(200, "text")), '"body" that is an object', id="body-that-is-text"),
        pytest.param(batch_line("one", BODY), '"response" or an "error"', id="a-request"),
    ],
)
def test_a_line_that_is_no_result_is_named(write: Write, line: Any, expected: str) -> None:
    path = write(result(error=EXPIRED), line)

    with pytest.raises(DataError, match=expected) as caught:
        list(read_batch_results(path))

    assert (path, 2) == (caught.value.path, caught.value.line)


def test_a_torn_last_line_is_an_error_after_the_whole_ones(write: Write) -> None:
    path = write(result(error=EXPIRED))
    path.write_text(path.read_text() + '{"id": "batch_req_2", "custom_')
    results = read_batch_results(path)

    assert "one" == next(results).custom_id
    with pytest.raises(DataError, match="line 2: it is not valid JSON"):
        next(results)
