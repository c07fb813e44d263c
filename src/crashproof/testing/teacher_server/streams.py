"""Write a stream in the manners of servers."""

from __future__ import annotations

import json
from dataclasses import replace

from crashproof.rules.requests import JsonObject
from crashproof.testing.teacher_server.faults import Fault
from crashproof.testing.teacher_server.http_stub import Response

__all__ = ["streamed"]

_MARK = b"data: "
_DONE = b"data: [DONE]\n\n"


def streamed(fault: Fault, response: Response) -> Response:
    """The same stream of events in another manner."""
    match fault:
        case Fault.STREAM_ODD:
            return replace(response, content_type="application/json", pieces=_oddly(response))
        case Fault.STREAM_OF_LINES:
            lines = [json.dumps(chunk).encode() + b"\n" for chunk in _chunks(response)]
            return replace(response, content_type="application/x-ndjson", pieces=lines)
        case Fault.STREAM_OF_ONE:
            return replace(response, pieces=(_MARK + json.dumps(_joined(response)).encode() + b"\n\n", _DONE))
        case Fault.STREAM_ERROR:
            half = response.pieces[: len(response.pieces) // 2]
            error = {"error": {"message": "Made to fail: stream_error.", "code": 502}}
            return replace(response, pieces=(*half, _MARK + json.dumps(error).encode() + b"\n\n"))
        case _:
            return response


def _oddly(response: Response) -> list[bytes]:
    """Comments, carriage returns, no space behind the colon, an event over two lines, no end marker."""
    pieces = [b": keep-alive\r\n\r\n", b"retry: 3000\r\n\r\n"]
    for number, chunk in enumerate(_chunks(response)):
        text = json.dumps(chunk)
        lines = text.split(", ", 1) if number % 2 else [text]
        ends = ", " if len(lines) > 1 else ""
        written = f"data:{lines[0]}{ends}\r\n" + "".join(f"data:{line}\r\n" for line in lines[1:])
        pieces.append(f"id: {number}\r\n{written}\r\n".encode())
    return pieces


def _chunks(response: Response) -> list[JsonObject]:
    return [json.loads(piece.removeprefix(_MARK)) for piece in response.pieces if piece != _DONE]


def _joined(response: Response) -> JsonObject:
    """The completion whose chunks these are; of the first choice's text alone."""
    chunks = _chunks(response)
    deltas = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(delta["delta"].get("content") or "" for delta in deltas)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {**chunks[0], "object": "chat.completion", "choices": [choice], "usage": chunks[-1].get("usage")}
