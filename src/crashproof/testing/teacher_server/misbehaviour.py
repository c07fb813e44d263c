"""Carry out faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import formatdate

from crashproof.clock import Clock
from crashproof.testing.teacher_server.completions import Completion, Usage
from crashproof.testing.teacher_server.errors_in_success import ERRORS_IN_SUCCESS, UPSTREAM_ERROR
from crashproof.testing.teacher_server.faults import Fault, FaultTimes
from crashproof.testing.teacher_server.http_stub import Connection, Response
from crashproof.testing.teacher_server.provider_refusals import PROVIDER_REFUSALS
from crashproof.testing.teacher_server.questions import error_response
from crashproof.testing.teacher_server.streams import streamed

__all__ = ["cut_short", "refuse", "spoil", "wrong_usage"]

_PROXY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n"

_STATUS = {
    Fault.RATE_LIMITED: 429,
    Fault.RATE_LIMITED_WITH_SECONDS: 429,
    Fault.RATE_LIMITED_WITH_DATE: 429,
    Fault.SERVER_ERROR: 500,
    Fault.OVERLOADED: 503,
    Fault.REQUEST_TIMEOUT: 408,
    Fault.CONFLICT: 409,
    Fault.TOO_EARLY: 425,
    Fault.ERROR_BODY: 200,
}


async def refuse(fault: Fault, connection: Connection, times: FaultTimes, clock: Clock) -> None:
    """Inject a fault before anything is computed."""
    match fault:
        case Fault.DROP_BEFORE:
            connection.drop()
        case Fault.GARBAGE:
            await connection.send(Response(content_type="text/html", pieces=(_PROXY_PAGE,)))
        case _ if fault in ERRORS_IN_SUCCESS:
            await connection.send(ERRORS_IN_SUCCESS[fault])
        case _ if fault in PROVIDER_REFUSALS:
            await connection.send(PROVIDER_REFUSALS[fault])
        case _:
            headers = _retry_after(fault, times, clock)
            await connection.send(
                error_response(_STATUS[fault], f"Made to fail: {fault}.", code=fault, headers=headers)
            )


async def spoil(
    fault: Fault, connection: Connection, response: Response, times: FaultTimes, on_delivery: Callable[[], None]
) -> None:
    """Inject a fault into a computed answer; `on_delivery` is called if it arrives nevertheless."""
    match fault:
        case Fault.WRONG_USAGE | Fault.TRUNCATED | Fault.FILTERED:
            await connection.send(response, on_delivery=on_delivery)
        case Fault.BROKEN_OFF:
            await connection.send(response)
        case Fault.SLOW_BODY:
            await connection.send_slowly(response, seconds=times.slow_body_seconds, on_delivery=on_delivery)
        case Fault.DROP_AFTER:
            connection.drop()
        case Fault.DROP_MIDWAY:
            await connection.send_half(response)
        case Fault.STALL:
            await connection.stall(seconds=times.stall_seconds)
        case Fault.STREAM_UNASKED | Fault.STREAM_ODD | Fault.STREAM_OF_LINES | Fault.STREAM_OF_ONE:
            await connection.send(streamed(fault, response), on_delivery=on_delivery)
        case Fault.STREAM_ERROR:
            await connection.send(streamed(fault, response))
        case Fault.STREAM_CUT:
            await connection.send_half(streamed(fault, response))
        case Fault.STREAM_STALL:
            await connection.send_half(streamed(fault, response), stalls_seconds=times.stall_seconds)
        case Fault.BROKEN_JSON:
            body = b"".join(response.pieces)
            await connection.send(replace(response, pieces=(body[: len(body) // 2],)))
        case _:
            await connection.send(error_response(504, f"Made to fail: {fault}.", code=fault))


def cut_short(fault: Fault, completion: Completion) -> Completion:
    """The completion as a fault lets it end."""
    match fault:
        case Fault.TRUNCATED:
            return completion.cut("length")
        case Fault.FILTERED:
            return completion.cut("content_filter")
        case Fault.BROKEN_OFF:
            return completion.cut("error", error=UPSTREAM_ERROR)
        case _:
            return completion


def wrong_usage(usage: Usage, number: int) -> Mapping[str, object] | None:
    """An impossible usage: negative, missing and zero in turn."""
    if number % 3 == 1:
        return None
    sign = -1 if number % 3 == 0 else 0
    return Usage(
        prompt_tokens=sign * usage.prompt_tokens,
        cached_tokens=sign * usage.cached_tokens,
        completion_tokens=sign * usage.completion_tokens,
        reasoning_tokens=sign * usage.reasoning_tokens,
    ).as_json()


def _retry_after(fault: Fault, times: FaultTimes, clock: Clock) -> Mapping[str, str]:
    if fault is Fault.RATE_LIMITED_WITH_SECONDS:
        return {"retry-after": str(times.retry_after_seconds)}
    if fault is Fault.RATE_LIMITED_WITH_DATE:
        now = clock.now()
        later = math.ceil(now + times.retry_after_seconds)
        return {"retry-after": formatdate(later, usegmt=True), "date": formatdate(now, usegmt=True)}
    return {}
