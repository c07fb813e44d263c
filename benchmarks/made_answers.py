"""Teacher answers made to be measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.made_runs import new_tracker
from crashproof.answers.store import Answered, Granted, Intent
from crashproof.records.lines.codec import encode
from crashproof.records.requests import AnswerRecord
from crashproof.rules.requests import TeacherRequest

__all__ = ["made_answer", "made_intent", "made_key", "write_answers"]

_ANSWER_BYTES = 4096
"""Of the text alone."""

_WORDS = "the ship holds fast while the tide turns and the long rope wears thin against the old stone quay "
_TEXT = (_WORDS * (_ANSWER_BYTES // len(_WORDS) + 1))[:_ANSWER_BYTES]
_START = 1_780_000_000
_COST = Decimal("0.000615")
_MOST = Decimal("0.001234")
_ANSWERS_A_WRITE = 1024


def made_key(number: int) -> str:
    """What the answer of a number is kept under; spread as real keys are, and made faster."""
    return hashlib.sha256(b"%d" % number).hexdigest()


def made_intent(number: int) -> Intent:
    """A question of a few words."""
    question = f"What does the rope say of stone number {number:09d}?"
    body = {
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": question}],
        "model": "teacher",
        "temperature": 0.7,
    }
    request = TeacherRequest(base_url="https://teacher.example/v1", body=body, sample=0, key=made_key(number))
    return Intent(request=request, most=_MOST)


def made_answer(granted: Granted) -> Answered:
    """A chat completion of 4 KB."""
    message = {"role": "assistant", "content": _TEXT}
    response: dict[str, Any] = {
        "id": f"chatcmpl-{granted.request_id}",
        "object": "chat.completion",
        "created": _START,
        "model": "teacher",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 1020, "total_tokens": 1040},
    }
    return Answered(granted=granted, cost=_COST, response=response)


def write_answers(folder: Path, num_answers: int) -> int:
    """Begin a run and give it so many answers, numbered from 0, in lines of one length, which is returned.

    The run's snapshots have taken the answers in; an index of them is for the first question to make.
    """
    tracker = new_tracker(folder)
    journal, session_id = tracker.api_recovery_file, tracker.session.session_id
    tracker.close()
    line_bytes = 0
    with journal.open("ab") as file:
        for lines in _blocks_of_lines(num_answers, session_id):
            file.write(b"".join(lines))
            line_bytes = len(lines[0])
    new_tracker(folder).close()
    if journal.stat().st_size != num_answers * line_bytes:
        raise AssertionError("The lines are not of one length.")
    return line_bytes


def _blocks_of_lines(num_answers: int, session_id: str) -> Iterator[list[bytes]]:
    for first in range(0, num_answers, _ANSWERS_A_WRITE):
        last = min(num_answers, first + _ANSWERS_A_WRITE)
        yield [encode(_record(number, session_id)) for number in range(first, last)]


def _record(number: int, session_id: str) -> AnswerRecord:
    intent = made_intent(number)
    granted = Granted(request_id=f"{number:016x}", request=intent.request, most=intent.most)
    return made_answer(granted).as_record(timestamp=float(_START), session_id=session_id, attempt=1)
