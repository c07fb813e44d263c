"""Apply teacher answers and requests to a session."""

from __future__ import annotations

from crashproof.records.requests import (
    AnswerRecord,
    OpenRequest,
    RequestLine,
    RequestLost,
    RequestRefused,
    RequestSent,
)
from crashproof.records.session import TrainingSession
from crashproof.rules.session.attempts import attempt_of

__all__ = ["apply_answer", "apply_request"]


def apply_answer(session: TrainingSession, record: AnswerRecord) -> None:
    """Apply one paid answer of this session."""
    session.api_responses_saved += 1
    session.api_cost += record.cost
    if isinstance(record.problem, str):
        session.api_responses_bad += 1
        session.api_cost_wasted += record.cost
    if isinstance(record.request_id, str):
        session.api_requests_open.pop(record.request_id, None)
    attempt = attempt_of(session, record.attempt)
    attempt.last_seen = max(attempt.last_seen, record.timestamp)


def apply_request(session: TrainingSession, line: RequestLine) -> None:
    """Apply the beginning of a request of this session, or its end without an answer."""
    match line:
        case RequestSent():
            session.api_requests_open[line.request_id] = OpenRequest(attempt=line.attempt, most=line.most)
        case RequestRefused():
            session.api_requests_open.pop(line.request_id, None)
        case RequestLost():
            lost = session.api_requests_open.pop(line.request_id, None)
            session.api_requests_in_doubt += 1
            session.api_cost_in_doubt += lost.most if lost is not None else 0
        case _:  # AnswerMarked
            session.api_responses_marked.append(line.request_id or line.prompt_hash)
            session.api_responses_bad += 1
            session.api_cost_wasted += line.cost
    attempt = attempt_of(session, line.attempt)
    attempt.last_seen = max(attempt.last_seen, line.timestamp)
