"""Read and write batch files.

A provider takes a file of requests and returns, within a day, a file of results in any order, at a lower price.
OpenAI, as of 2025, takes 50,000 requests and 200 MB per file, all for one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from crashproof.errors import DataError, InputError
from crashproof.json_lines import read_objects
from crashproof.rules.requests import JsonObject
from crashproof.teacher.replies.errors import error_in

__all__ = ["MOST_BYTES", "MOST_LINES", "BatchFile", "BatchResult", "batch_line", "batches", "read_batch_results"]

MOST_LINES = 50_000
MOST_BYTES = 200_000_000

_OK = 200
_LONGEST_FAILURE = 300

_RESULT = 'A result is {"custom_id": …, "response": {"status_code": …, "body": {…}}, "error": …}.'


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """The requests of one file."""

    custom_ids: list[str]
    content: bytes
    """The complete file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """The result of one request: a body, or the reason why there is none."""

    line: int
    """Line number in the file, from 1."""
    custom_id: str
    body: JsonObject | None
    """The response, as it would have come over HTTP."""
    failure: str | None
    status: int | None
    """The HTTP status, or the one that an error within a success stands for; None if the request was never sent."""


def batch_line(custom_id: str, body: Mapping[str, object]) -> JsonObject:
    """Build one line of a batch file."""
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": dict(body)}


def batches(
    lines: Iterable[JsonObject], most_lines: int = MOST_LINES, most_bytes: int = MOST_BYTES
) -> Iterator[BatchFile]:
    """Split lines from `batch_line` into as few files as their order allows; one file is in memory at a time.

    Raises:
        InputError: a request alone exceeds the size of a file.
    """
    custom_ids: list[str] = []
    content = bytearray()
    for line in lines:
        encoded = msgspec.json.encode(line) + b"\n"
        if len(encoded) > most_bytes:
            raise InputError(
                f"The request {line['custom_id']} has {len(encoded):,} bytes; a batch file takes {most_bytes:,}.",
                hint="Shorten its messages, or send it without a batch.",
            )
        if custom_ids and (len(custom_ids) == most_lines or len(content) + len(encoded) > most_bytes):
            yield BatchFile(custom_ids=custom_ids, content=bytes(content))
            custom_ids, content = [], bytearray()
        custom_ids.append(line["custom_id"])
        content += encoded
    if custom_ids:
        yield BatchFile(custom_ids=custom_ids, content=bytes(content))


def read_batch_results(path: Path) -> Iterator[BatchResult]:
    """Yield the results in a file of outputs or errors, in order, one line at a time.

    Raises:
        DataError: the file cannot be read, or a line is malformed; names the line.
    """
    for number, content in read_objects(path):
        try:
            yield _result(number, content)
        except ValueError as error:
            raise DataError(path, str(error), line=number, hint=_RESULT) from None


def _result(number: int, content: JsonObject) -> BatchResult:
    """Parse a line; raises ValueError with what is wrong with it."""
    custom_id, response, error = (content.get(key) for key in ("custom_id", "response", "error"))
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError('a result needs a "custom_id" that is a string')
    if error is None and response is None:
        raise ValueError('a result needs a "response" or an "error"')
    status, body = _status_and_body(response)
    is_good = error is None and status == _OK and isinstance(body, dict)
    inside = error_in(_OK, msgspec.json.encode(body)) if is_good else None
    if inside is not None:
        return BatchResult(
            line=number, custom_id=custom_id, body=None, failure=inside.told[:_LONGEST_FAILURE], status=inside.status
        )
    return BatchResult(
        line=number,
        custom_id=custom_id,
        body=body if is_good else None,
        failure=None if is_good else _failure(error, status, body),
        status=status,
    )


def _status_and_body(response: object) -> tuple[int | None, Any]:
    if response is None:
        return None, None
    if not isinstance(response, dict) or type(status := response.get("status_code")) is not int:
        raise ValueError('the "response" of a result needs a "status_code" that is an integer')
    body = response.get("body")
    if status == 200 and not isinstance(body, dict):
        raise ValueError('a "response" with "status_code" 200 needs a "body" that is an object')
    return status, body


def _failure(error: object, status: int | None, body: object) -> str:
    """The provider's own reason, if it gives one."""
    said = error if error is not None else body.get("error") if isinstance(body, dict) else body
    where = "" if status is None else f"HTTP {status}: "
    if isinstance(said, dict):
        words = [str(said[key]) for key in ("code", "message") if said.get(key)]
        return where + (": ".join(words) or "no reason given")
    return where + (str(said) if said else "no reason given")
