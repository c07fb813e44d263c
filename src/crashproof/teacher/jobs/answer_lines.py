"""Make lines of questions and their answers."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from crashproof.records.requests import AnswerRecord
from crashproof.rules.requests import JsonObject
from crashproof.teacher.client.answers import answer_in, finish_reason_of, problem_with, problem_with_ending
from crashproof.teacher.jobs.prompts import problem_with_answer, trained_line
from crashproof.teacher.jobs.question import Question
from crashproof.teacher.replies.endings import ending_of

__all__ = ["AnswerLines", "Judged"]

_NOT_SENT = "not requested yet"
_STORED = "the answer is stored but unusable"

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the store has for a question, as a line of the output or a reason why it makes none."""

    question: Question
    record: AnswerRecord | None
    line: bytes | None
    reason: str = ""
    """Why there is no line."""

    @property
    def incomplete(self) -> str | None:
        """The finish reason of an answer that is not known to be complete, written or not."""
        if self.record is None:
            return None
        finish_reason = finish_reason_of(self.record)
        return None if finish_reason is None or ending_of(finish_reason).may_be_whole else finish_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLines:
    """How a job writes its answers."""

    num_samples: int
    keeps_truncated: bool

    def judge(self, question: Question, record: AnswerRecord | None, *, reason: str | None = None) -> Judged:
        """Make the line of a question; `reason` is why it has no answer, if that is known."""
        try:
            line = self._trained_line(question, record, reason)
        except ValueError as error:
            return Judged(question=question, record=record, line=None, reason=str(error))
        return Judged(question=question, record=record, line=_encoder.encode(line) + b"\n")

    def failed_line(self, judged: Judged) -> bytes:
        """The line of a question without a usable answer, which can be asked again as it is."""
        question, prompt = judged.question, judged.question.prompt
        asked: JsonObject = {"prompt": prompt.text} if prompt.text is not None else {"messages": prompt.messages}
        if prompt.tools:
            asked["tools"] = prompt.tools
        details: JsonObject = {"line": prompt.line, "reason": judged.reason, "key": question.key}
        if judged.record is not None:
            details["finish_reason"] = finish_reason_of(judged.record)
        if self.num_samples > 1:
            details["failed_sample"] = question.sample
        # Last, so that no field of the prompt hides the reason.
        return _encoder.encode(asked | prompt.extra | details) + b"\n"

    def _trained_line(self, question: Question, record: AnswerRecord | None, reason: str | None) -> JsonObject:
        """Raises ValueError with the reason if there is none."""
        if record is None:
            raise ValueError(reason or _NOT_SENT)
        if isinstance(record.problem, str):
            raise ValueError(f"{_STORED}: {record.problem}")
        answer = answer_in(record)
        cut = None if self.keeps_truncated else problem_with_ending(answer)
        if cut is not None:
            raise ValueError(f"the answer is stored but incomplete: {cut}; --keep-truncated writes it as it is")
        problem = problem_with(answer, question.request.body) or problem_with_answer(question.prompt, answer.message)
        if problem is not None:
            raise ValueError(f"{_STORED}: {problem}")
        return trained_line(
            question.prompt,
            answer.message,
            sample=question.sample,
            num_samples=self.num_samples,
            logprobs=answer.logprobs,
            finish_reason=answer.finish_reason,
        )
