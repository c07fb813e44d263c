"""How questions ended, and what follows for the job."""

from __future__ import annotations

import pytest

from crashproof.errors import (
    AnswerIncomplete,
    AnswerUnusable,
    BudgetExhausted,
    DiskFull,
    StoreUnavailable,
    TeacherClosed,
    TeacherRefused,
    TeacherUnreachable,
)
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.outcomes import End, EndKind, Outcomes, Verdict

URL = "http://teacher/v1"
ANSWERED = End.of(None)


def unreachable(*, is_away: bool = False, hits_all: bool = False) -> TeacherUnreachable:
    return TeacherUnreachable(URL, attempts=8, seconds=30, last="no connection", is_away=is_away, hits_all=hits_all)


AWAY = End.of(unreachable(is_away=True))
UNANSWERED = End.of(unreachable())


class Job:
    """A job whose answers and time are counted by hand."""

    def __init__(self, *, max_unanswered: int = 4, longest_absence_seconds: float = 60.0) -> None:
        self.num_answers = 100
        self.now = 1000.0
        self.outcomes = Outcomes(
            EngineResult(),
            max_unanswered=max_unanswered,
            longest_absence_seconds=longest_absence_seconds,
            count_answers=lambda: self.num_answers,
        )
        self._num_asked = 0

    def end(self, end: End, *, after_seconds: float = 0.0) -> Verdict:
        self.now += after_seconds
        self.num_answers += end.kind is EndKind.ANSWERED
        self._num_asked += 1
        return self.outcomes.note(f"question {self._num_asked}", end, now=self.now)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, EndKind.ANSWERED),
        (AnswerUnusable("key", problem="it is empty"), EndKind.UNUSABLE),
        (AnswerIncomplete("key", problem="it was cut off"), EndKind.UNUSABLE),
        (BudgetExhausted("The budget is used up."), EndKind.OVER_BUDGET),
        (TeacherClosed(), EndKind.NOT_ASKED),
        (unreachable(is_away=True), EndKind.AWAY),
        (unreachable(), EndKind.UNANSWERED),
        (unreachable(hits_all=True), EndKind.FATAL),
        (unreachable(hits_all=True, is_away=True), EndKind.FATAL),
        (TeacherRefused(URL, status=403, reason="HTTP 403"), EndKind.UNANSWERED),
        (TeacherRefused(URL, status=403, reason="HTTP 403", hits_all=True), EndKind.FATAL),
        (TeacherRefused(URL, status=400, reason="HTTP 400"), EndKind.REFUSED),
        (TeacherRefused(URL, status=401, reason="HTTP 401", hits_all=True), EndKind.FATAL),
        (StoreUnavailable("db", reason="gone"), EndKind.FATAL),
        (RuntimeError("a bug"), EndKind.FATAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception | None) else str(value),
)
def test_every_error_says_what_it_means_for_the_others(error: Exception | None, kind: EndKind) -> None:
    assert kind == End.of(error).kind


def test_a_teacher_that_never_answered_ends_the_job_after_a_few_questions() -> None:
    job = Job()

    assert [Verdict.FINISHED] * 3 + [Verdict.STOP] == [job.end(AWAY) for _ in range(4)]
    assert AWAY.error is job.outcomes.fatal


def test_answers_in_between_show_that_the_teacher_is_there() -> None:
    job = Job()

    verdicts = [job.end(end) for _ in range(5) for end in (UNANSWERED, UNANSWERED, UNANSWERED, ANSWERED)]

    assert [Verdict.FINISHED] * 20 == verdicts
    assert (20, 15, None) == (job.outcomes.num_finished, len(job.outcomes.asked.reasons), job.outcomes.fatal)


def test_answers_of_other_askers_count() -> None:
    job = Job()

    for _ in range(10):
        job.end(UNANSWERED)
        job.num_answers += 1

    assert job.outcomes.fatal is None


def test_answers_from_the_store_do_not_show_that_the_teacher_is_there() -> None:
    job = Job()
    for _ in range(3):
        job.end(UNANSWERED)
        job.outcomes.note("stored", ANSWERED, now=job.now)

    assert Verdict.STOP == job.end(UNANSWERED)


def test_a_refusal_shows_that_the_teacher_is_there() -> None:
    job = Job()
    refused = End.of(TeacherRefused(URL, status=400, reason="HTTP 400"))

    verdicts = [job.end(end) for end in (UNANSWERED, UNANSWERED, UNANSWERED, refused) * 3]

    assert Verdict.STOP not in verdicts


def test_a_teacher_that_goes_away_is_waited_for_as_long_as_its_attempts_may_take() -> None:
    job = Job(longest_absence_seconds=60.0)
    job.end(ANSWERED)

    waited = [job.end(AWAY, after_seconds=0.9) for _ in range(60)]
    job.num_answers += 1
    back = [job.end(AWAY, after_seconds=0.9) for _ in range(60)]
    gone = job.end(AWAY, after_seconds=20.0)

    assert [Verdict.ASK_AGAIN] * 120 == waited + back
    assert Verdict.STOP == gone
    assert 1 == job.outcomes.num_finished
    assert {} == job.outcomes.asked.reasons


def test_after_the_wait_a_few_questions_are_listed_and_the_job_goes_on() -> None:
    job = Job(longest_absence_seconds=5.0)
    job.end(ANSWERED)

    verdicts = [job.end(AWAY, after_seconds=4.0) for _ in range(3)]
    job.outcomes.finish()

    assert [Verdict.ASK_AGAIN, Verdict.ASK_AGAIN, Verdict.FINISHED] == verdicts
    assert (2, 1, None) == (job.outcomes.num_finished, len(job.outcomes.asked.reasons), job.outcomes.fatal)


def test_one_attempt_for_each_question_means_no_patience() -> None:
    job = Job(longest_absence_seconds=RetryPolicy(attempts=1).longest_pauses_seconds)
    job.end(ANSWERED)

    assert Verdict.FINISHED == job.end(AWAY)


def test_a_small_job_without_any_answer_fails() -> None:
    job = Job(max_unanswered=16)
    job.end(UNANSWERED)
    job.end(UNANSWERED)

    job.outcomes.finish()

    assert UNANSWERED.error is job.outcomes.fatal


def test_the_first_fatal_error_is_told() -> None:
    job = Job()
    full, other = DiskFull, StoreUnavailable
    first = full.__new__(full, "full")

    verdicts = [job.end(End.of(first)), job.end(End.of(other("db", reason="gone")))]

    assert [Verdict.STOP, Verdict.STOP] == verdicts
    assert first is job.outcomes.fatal


def test_questions_over_budget_are_not_finished() -> None:
    job = Job()
    over = BudgetExhausted("The budget is used up.")

    job.end(ANSWERED)
    job.end(End.of(over))

    assert 1 == job.outcomes.num_finished
    assert over is job.outcomes.asked.over_budget
    assert [str(over)] == list(job.outcomes.asked.reasons.values())


def test_what_was_not_asked_is_neither_finished_nor_listed() -> None:
    job = Job()

    assert Verdict.FINISHED == job.end(End.of(TeacherClosed()))
    assert (0, {}) == (job.outcomes.num_finished, job.outcomes.asked.reasons)


def test_failures_that_go_on_are_told_once_until_the_next_answer() -> None:
    outcomes = Job().outcomes

    told = [outcomes.note_failure("no connection.", now=second) for second in (0.0, 1.0, 6.0, 7.0)]
    outcomes.note("key", ANSWERED, now=8.0)
    told += [outcomes.note_failure("no connection", now=second) for second in (20.0, 26.0)]

    sentence = "No answer from the teacher for 6 s (no connection); still trying."
    assert ["", "", sentence, "", "", sentence] == told


def test_patience_follows_from_how_requests_are_sent() -> None:
    settings = TeacherSettings(
        endpoint=Endpoint(base_url=URL),
        prices=PriceTable.load(),
        limits=Limits(concurrency=2),
        retry_policy=RetryPolicy(attempts=8),
    )
    outcomes = Outcomes.for_settings(settings, EngineResult(), count_answers=lambda: 0)

    assert 5.0 == outcomes.pause_seconds
    assert 63.5 == settings.retry_policy.longest_pauses_seconds
    assert [Verdict.FINISHED] * 3 + [Verdict.STOP] == [outcomes.note(f"{n}", AWAY, now=0.0) for n in range(4)]
