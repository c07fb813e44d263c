"""Batch files of the providers.

A provider takes a file of requests and gives, within a day, a file of results in any order, at a lower price. OpenAI,
as of 2025, takes 50,000 requests and 200 MB a file, all to one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from crashproof.errors import DataError, InputError
from crashproof.json_lines import read_objects

__all__ = ["MOST_BYTES", "MOST_LINES", "BatchFile", "BatchResult", "batch_line", "batches", "read_batch_results"]

MOST_LINES = 50_000
MOST_BYTES = 200_000_000

_RESULT = 'A result is {"custom_id": …, "response": {"status_code": …, "body": {…}}, "error": …}.'


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """Requests that go into one file."""

    custom_ids: list[str]
    content: bytes
    """The whole file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What became of one request: a body, or the reason why there is none."""

    line: int
    """Where in the file it stands, from 1."""
    custom_id: str
    body: dict[str, Any] | None
    """The response, as it would have come over HTTP."""
    failure: str | None
    status: int | None
    """The HTTP status; None where the request was never sent."""


def batch_line(custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One request of a batch file."""
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": dict(body)}


def batches(
    lines: Iterable[Mapping[str, Any]], most_lines: int = MOST_LINES, most_bytes: int = MOST_BYTES
) -> Iterator[BatchFile]:
    """Requests from `batch_line` in as few files as their order allows; one file is in memory at a time.

    Raises:
        InputError: a request is longer than a whole file may be.
    """
    custom_ids: list[str] = []
    content = bytearray()
    for line in lines:
        encoded = msgspec.json.encode(line) + b"\n"
        if len(encoded) > most_bytes:
            raise InputError(
                f"The request {line['custom_id']} has {len(encoded):,} bytes; a batch file takes {most_bytes:,}.",
                hint="Shorten its messages, or ask it without a batch.",
            )
        if custom_ids and (len(custom_ids) == most_lines or len(content) + len(encoded) > most_bytes):
            yield BatchFile(custom_ids=custom_ids, content=bytes(content))
            custom_ids, content = [], bytearray()
        custom_ids.append(line["custom_id"])
        content += encoded
    if custom_ids:
        yield BatchFile(custom_ids=custom_ids, content=bytes(content))


def read_batch_results(path: Path) -> Iterator[BatchResult]:
    """The results in a file of outputs or of errors, in the order of the file, one line at a time.

    Raises:
        DataError: the file cannot be read, or a line is no result; tells which.
    """
    for number, content in read_objects(path):
        try:
            yield _result(number, content)
        except ValueError as error:
            raise DataError(path, str(error), line=number, hint=_RESULT) from None


def _result(number: int, content: dict[str, Any]) -> BatchResult:
    """A line as a result; a ValueError says what is wrong with it."""
    custom_id, response, error = (content.get(key) for key in ("custom_id", "response", "error"))
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError('a result needs a "custom_id" that is text')
    if error is None and response is None:
        raise ValueError('a result needs a "response" or an "error"')
    status, body = _status_and_body(response)
    is_good = error is None and status == 200 and isinstance(body, dict)
    return BatchResult(
        line=number,
        custom_id=custom_id,
        body=body if is_good else None,
        failure=None if is_good else _failure(error, status, body),
        status=status,
    )


def _status_and_body(response: Any) -> tuple[int | None, Any]:
    if response is None:
        return None, None
    status = response.get("status_code") if isinstance(response, dict) else None
    if type(status) is not int:
        raise ValueError('the "response" of a result needs a "status_code" that is a whole number')
    body = response.get("body")
    if status == 200 and not isinstance(body, dict):
        raise ValueError('a "response" with "status_code" 200 needs a "body" that is an object')
    return status, body


def _failure(error: Any, status: int | None, body: Any) -> str:
    """In words: the provider's own, where it gives any."""
    said = error if error is not None else body.get("error") if isinstance(body, dict) else body
    where = "" if status is None else f"HTTP {status}: "
    if isinstance(said, dict):
        words = [str(said[key]) for key in ("code", "message") if said.get(key)]
        return where + (": ".join(words) or "no reason given")
    return where + (str(said) if said else "no reason given")
