"""Decide whether a job goes on.

One object takes in how each question ended, whoever asked it: this process, or the machines of a cluster. A teacher
that is away looks the same to all of them, so they have to be judged together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from crashproof.errors import AnswerUnusable, BudgetExhausted, TeacherClosed, TeacherRefused, TeacherUnreachable
from crashproof.formatting import as_duration
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings

__all__ = ["End", "EndKind", "Outcomes", "Verdict"]

_MIN_UNANSWERED = 4
"""Consecutive questions without an answer before a job stops: the first may fail for reasons of their own."""
_LONGEST_PAUSE_SECONDS = 5.0
_SILENT_SECONDS = 5.0
"""Failures in a row that last longer are worth a word, so that nobody takes the job for dead."""


class EndKind(StrEnum):
    """How a question ended, as far as the others are concerned."""

    ANSWERED = "answered"
    UNUSABLE = "unusable"
    OVER_BUDGET = "over_budget"
    REFUSED = "refused"
    """For a reason of its own."""
    UNANSWERED = "unanswered"
    """Perhaps for a reason of its own; other questions will show."""
    AWAY = "away"
    """Without a connection to the teacher, so for no reason of its own."""
    FATAL = "fatal"
    """For a reason that holds for every question."""
    NOT_ASKED = "not_asked"
    """The job was stopped before it was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How one question ended."""

    kind: EndKind
    error: Exception | None = None

    @classmethod
    def of(cls, error: Exception | None) -> Self:
        """Classify what `AsyncTeacher.ask_request` raised; None for an answer."""
        return cls(kind=_kind_of(error), error=error)

    @property
    def reason(self) -> str:
        """Why there is no answer, for the list of failures."""
        return self.error.problem if isinstance(self.error, AnswerUnusable) else str(self.error)


class Verdict(StrEnum):
    """What follows from the end of a question."""

    FINISHED = "finished"
    """It is over with this question."""
    ASK_AGAIN = "ask_again"
    """The question is to be asked once more, after `Outcomes.pause_seconds`."""
    STOP = "stop"
    """Nothing more is to be asked; `Outcomes.fatal` is why."""


class Outcomes:
    """What became of a job's questions so far, and whether it makes sense to ask more of them."""

    def __init__(
        self,
        asked: EngineResult,
        *,
        max_unanswered: int,
        longest_absence_seconds: float,
        count_answers: Callable[[], int],
    ) -> None:
        """Begin a job.

        Args:
            asked: What is told of it in the end.
            max_unanswered: Consecutive questions without an answer after which a job stops.
            longest_absence_seconds: How long a teacher that has answered before may be away.
            count_answers: Counts the answers that were bought for this job, by whatever process.
        """
        self.asked = asked
        self.fatal: Exception | None = None
        """Why nothing more is to be asked."""
        self._max_unanswered = max_unanswered
        self._longest_absence_seconds = longest_absence_seconds
        self._count_answers = count_answers
        self._num_answers = self._num_answers_before = count_answers()
        self._num_ended = 0
        self._num_over_budget = 0
        self._num_given_up = 0
        """Those that ended without any answer."""
        self._num_unanswered = 0
        """Consecutive: no question got an answer from the teacher meanwhile."""
        self._unanswered: Exception | None = None
        self._away_since: float | None = None
        self._failing_since: float | None = None
        """Since when attempts have done nothing but fail."""
        self._has_told_of_failing = False

    @classmethod
    def for_settings(
        cls, settings: TeacherSettings, asked: EngineResult, *, count_answers: Callable[[], int]
    ) -> Self:
        """Begin a job that waits for its teacher as long as the retries of one request take."""
        return cls(
            asked,
            max_unanswered=max(_MIN_UNANSWERED, settings.limits.concurrency),
            longest_absence_seconds=settings.retry_policy.longest_pauses_seconds,
            count_answers=count_answers,
        )

    @property
    def num_finished(self) -> int:
        """Questions that need not be asked again, whatever the budget."""
        return self._num_ended - self._num_over_budget

    @property
    def pause_seconds(self) -> float:
        """How long a question waits that is to be asked again."""
        return min(_LONGEST_PAUSE_SECONDS, self._longest_absence_seconds / 4)

    def note(self, key: str, end: End, *, now: float) -> Verdict:
        """Take in how a question ended, and decide; `now` is a steady time in seconds."""
        match end.kind:
            case EndKind.FATAL:
                return self._stop(end)
            case EndKind.UNANSWERED | EndKind.AWAY:
                return self._note_unanswered(key, end, now)
            case EndKind.NOT_ASKED:
                return Verdict.FINISHED
        return self._note_end(key, end)

    def note_failure(self, reason: object, *, now: float) -> str:
        """Take in a failed attempt; returns a sentence for the user where the failures go on, else an empty one."""
        if self._failing_since is None:
            self._failing_since = now
        seconds = now - self._failing_since
        if self._has_told_of_failing or seconds < _SILENT_SECONDS:
            return ""
        self._has_told_of_failing = True
        return f"No answer from the teacher for {as_duration(seconds)} ({f'{reason}'.rstrip('.')}); still trying."

    def fail(self, error: Exception) -> None:
        """Take in an error of no single question, for which nothing more is to be asked."""
        self.fatal = self.fatal or error

    def finish(self) -> None:
        """Take in that nothing more is asked: a small job fails too if none of its questions got an answer."""
        if self.fatal is None and self._num_given_up == self._num_ended:
            self.fatal = self._unanswered

    def _note_end(self, key: str, end: End) -> Verdict:
        self._num_ended += 1
        if end.kind is EndKind.ANSWERED:
            self._failing_since, self._has_told_of_failing = None, False
            return Verdict.FINISHED
        self.asked.reasons[key] = end.reason
        if end.kind is EndKind.REFUSED:
            self._num_unanswered = 0
        elif isinstance(end.error, BudgetExhausted):
            self.asked.over_budget = end.error
            self._num_over_budget += 1
        return Verdict.FINISHED

    def _note_unanswered(self, key: str, end: End, now: float) -> Verdict:
        num_answers = self._count_answers()
        if num_answers != self._num_answers:
            self._num_answers, self._num_unanswered, self._away_since = num_answers, 0, None
        self._num_unanswered += 1
        self._unanswered = end.error
        if end.kind is EndKind.AWAY and self._may_come_back(now):
            return Verdict.ASK_AGAIN
        if self._num_unanswered >= self._max_unanswered:
            return self._stop(end)
        self._num_given_up += 1
        return self._note_end(key, end)

    def _may_come_back(self, now: float) -> bool:
        """Whether to wait for a teacher that is away; one that never answered is rather a wrong address."""
        if self._num_answers == self._num_answers_before:
            return False
        if self._away_since is None:
            self._away_since = now
        return now - self._away_since < self._longest_absence_seconds

    def _stop(self, end: End) -> Verdict:
        self.fatal = self.fatal or end.error
        return Verdict.STOP


def _kind_of(error: Exception | None) -> EndKind:
    match error:
        case None:
            return EndKind.ANSWERED
        case AnswerUnusable():
            return EndKind.UNUSABLE
        case BudgetExhausted():
            return EndKind.OVER_BUDGET
        case TeacherClosed():
            return EndKind.NOT_ASKED
        case TeacherUnreachable(hits_all=False, is_away=True):
            return EndKind.AWAY
        # 403: either the key is not permitted, or this prompt is not allowed.
        case TeacherUnreachable(hits_all=False) | TeacherRefused(hits_all=False, status=403):
            return EndKind.UNANSWERED
        case TeacherRefused(hits_all=False):
            return EndKind.REFUSED
    return EndKind.FATAL
