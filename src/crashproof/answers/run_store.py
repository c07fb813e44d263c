"""The run's own store of teacher answers."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any, Protocol

import msgspec

from crashproof.answers.answer_journal import AnswerJournal
from crashproof.answers.store import Answered, Busy, Granted, Intent, Lost, Outcome, OverBudget, Refused, Verdict
from crashproof.disk.files import Disk
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.reserved_space import ReservedSpace
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import DiskFull, InvalidMetric, StorageError
from crashproof.records.codec import encode, nonfinite_names
from crashproof.records.events import AnswersRecovered, Event, Stamp
from crashproof.records.requests import (
    AnswerMarked,
    AnswerRecord,
    RequestLine,
    RequestLost,
    RequestRefused,
    RequestSent,
)
from crashproof.records.session import TrainingSession
from crashproof.rules.requests import TeacherRequest
from crashproof.rules.session import apply_answer, apply_request
from crashproof.rules.spending import Spending, spending_of

__all__ = ["RunResponses"]

log = logging.getLogger("crashproof")

_LEAST_ROOM_BYTES = 256 << 10
"""Kept free for each answer that is under way; or twice the longest one so far, where that is more."""

_SECONDS_TO_LOOK_AGAIN = 0.05
_NONE_SERVED = AnswersRecovered(timestamp=0.0, attempt=0, count=0)


class AnsweredRun(Protocol):
    """What the store needs of the run that it belongs to."""

    @property
    def folder(self) -> RunFolder:
        """Where everything of the run lies."""
        ...

    @property
    def session(self) -> TrainingSession:
        """Takes the sums in."""
        ...

    @property
    def answers(self) -> QueueingJournal:
        """`api_recovery.jsonl`."""
        ...

    @property
    def requests(self) -> QueueingJournal:
        """`api_requests.jsonl`."""
        ...

    def stamp(self) -> Stamp:
        """When and by whom, for a line of this moment."""
        ...

    def keep(self, event: Event) -> None:
        """Journal an event."""
        ...


class Guard(AbstractContextManager[None], Protocol):
    """Held while the session or a journal changes; entering it raises `RunClosed` where the run is not open."""

    lock: threading.RLock
    """The same without asking whether the run is open."""

    def require_open(self) -> None:
        """Raise `RunClosed` unless the run may still be written."""
        ...


class RunResponses:
    """Answers in `api_recovery.jsonl`, requests in `api_requests.jsonl`, their sums in the session.

    A `ResponseStore` for the threads of this process; the run's lock keeps other processes out.
    """

    def __init__(self, run: AnsweredRun, guard: Guard, *, disk: Disk) -> None:
        """`guard` is the tracker's, which guards the session; nothing waits for the disk while holding it."""
        self._run = run
        self._guard = guard
        self._journal = AnswerJournal(run.answers, run.folder, disk=disk)
        self._reserved_space = ReservedSpace(run.folder.reserved_space, disk=disk)
        self._under_way: dict[str, str] = {}
        """The id of the request that is being sent, by key."""
        self._written: dict[str, int | None] = {}
        """Ends that are in the journals and not yet durable, by the request's id: of an answer, its offset."""
        self._refused: dict[str, Outcome] = {}
        """Ends that the disk has refused to keep, by key."""
        self._longest_bytes = 0
        self._served = _NONE_SERVED

    def keep(self, prompt_hash: str, response: Mapping[str, Any], cost: Decimal) -> None:
        """Keep an answer that the caller asked for by itself.

        Raises:
            InvalidMetric: it is not made of JSON values.
            DiskFull: it is not kept.
        """
        self._journal.read_index()
        with self._guard:
            try:
                answer = AnswerRecord(
                    **self._whose(prompt_hash),
                    cost=cost,
                    response=dict(response),
                    nonfinite=nonfinite_names({"response": response}) or msgspec.UNSET,
                )
                offset = self._append(answer)
            except (TypeError, ValueError) as error:
                raise InvalidMetric(f"A response must be made of JSON values: {error}.") from error
        # Outside the lock: threads that wait for the disk share one sync.
        self._journal.publish([offset])

    def keep_outcome(self, outcome: Answered) -> None:
        """Keep an answer to a request that was begun in another store, which cannot take it now.

        Raises:
            DiskFull: it is not kept.
        """
        self._journal.read_index()
        with self._guard:
            offset = self._write_answer(outcome)
        self._journal.publish([offset])

    def serve(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        answer = self.read(key)
        if answer is not None:
            self._count_served(answer)
        return answer

    def read(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        self._guard.require_open()
        return self._journal.get(key)

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """See `ResponseStore`."""
        self._journal.read_index()
        self._finish_what_was_refused()
        verdicts: list[Verdict] = []
        try:
            self._judge(intents, budget, verdicts)
        except BaseException:
            # None of them is sent.
            granted = [verdict for verdict in verdicts if isinstance(verdict, Granted)]
            self.finish([Refused(granted=each, reason="never sent") for each in granted])
            raise
        for verdict in verdicts:
            if isinstance(verdict, AnswerRecord):
                self._count_served(verdict)
        return verdicts

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """See `ResponseStore`; an end that the disk refuses is tried again before the next request."""
        with self._guard:
            open_ones = [each for each in outcomes if each.granted.request_id in self._under_way.values()]
        try:
            self._keep_ends(open_ones)
        except (StorageError, OSError):
            self._refused.update({each.granted.request.key: each for each in open_ones})
            raise
        with self._guard.lock:
            for outcome in open_ones:
                self._under_way.pop(outcome.granted.request.key, None)
                self._written.pop(outcome.granted.request_id, None)
                self._refused.pop(outcome.granted.request.key, None)

    def mark(self, key: str, problem: str) -> None:
        """See `ResponseStore`."""
        answer = self.read(key)
        if answer is None or isinstance(answer.problem, str):
            # What came with a problem counts as of no use already.
            return
        request_id = _request_of(answer)
        with self._guard:
            if (request_id or key) not in self._run.session.api_responses_marked:
                self._keep_line(
                    AnswerMarked(**self._whose(key), request_id=request_id, problem=problem, cost=answer.cost)
                )

    def why_miss(self, request: TeacherRequest) -> str:
        """See `ResponseStore`."""
        return self._journal.why_miss(request)

    def spending(self) -> Spending:
        """See `ResponseStore`."""
        with self._guard.lock:
            self.tell_served()
            return spending_of(self._run.session)

    def tell_served(self) -> None:
        """Journal how many answers were served from the disk; one line for many, since they cost nothing."""
        with self._guard.lock:
            if self._served.count:
                told = msgspec.structs.replace(self._served, **self._run.stamp())
                self._served = _NONE_SERVED
                self._run.keep(told)

    def leave_to_parent(self) -> None:
        """Of a forked child: what was served is counted by the parent."""
        self._served = _NONE_SERVED

    def save_index(self, *, only_if_due: bool = False) -> None:
        """Spare the next start the reading of all answers."""
        self._journal.save_index(only_if_due=only_if_due)

    def close(self) -> None:
        """Let go of the space that is held."""
        self._reserved_space.give_up()

    def _judge(self, intents: Sequence[Intent], budget: Decimal | None, verdicts: list[Verdict]) -> None:
        """Fill `verdicts`; those granted are durable when this returns."""
        with self._guard:
            room = max(_LEAST_ROOM_BYTES, 2 * self._longest_bytes)
            self._reserved_space.hold((len(self._under_way) + len(intents)) * room)
            for intent in intents:
                verdicts.append(self._verdict(intent, budget))  # noqa: PERF401 - kept as far as it came
        if any(isinstance(verdict, Granted) for verdict in verdicts):
            self._run.requests.journal.sync()

    def _verdict(self, intent: Intent, budget: Decimal | None) -> Verdict:
        key = intent.request.key
        if key in self._under_way:
            return Busy(holder="this process", seconds=_SECONDS_TO_LOOK_AGAIN)
        answer = self._journal.get(key)
        # Another one may have replaced it by now.
        if answer is not None and not (intent.replaces and self._is_of_no_use(answer)):
            return answer
        if budget is not None:
            spending = spending_of(self._run.session)
            if spending.committed + intent.most > budget:
                return OverBudget(spending=spending)
        granted = Granted(request_id=secrets.token_hex(8), request=intent.request, most=intent.most)
        self._keep_line(
            RequestSent(
                **self._whose(key), request_id=granted.request_id, model=intent.request.model, most=intent.most
            )
        )
        self._under_way[key] = granted.request_id
        return granted

    def _is_of_no_use(self, answer: AnswerRecord) -> bool:
        marked = self._run.session.api_responses_marked
        return isinstance(answer.problem, str) or (_request_of(answer) or answer.prompt_hash) in marked

    def _finish_what_was_refused(self) -> None:
        """Before anything else is paid for; and the money that it holds is free for others then."""
        with self._guard.lock:
            refused = list(self._refused.values())
        if refused:
            self.finish(refused)

    def _keep_ends(self, outcomes: Sequence[Outcome]) -> None:
        with self._guard.lock:
            for outcome in outcomes:
                request_id = outcome.granted.request_id
                # After a full disk this is called again with the same.
                if request_id not in self._written:
                    self._written[request_id] = self._write_end(outcome)
            offsets = [self._written[each.granted.request_id] for each in outcomes]
        answers = [offset for offset in offsets if offset is not None]
        if answers:
            self._journal.publish(answers)

    def _write_end(self, outcome: Outcome) -> int | None:
        """Returns the offset of an answer."""
        if not isinstance(outcome, Answered):
            line = _end_line(outcome, self._whose(outcome.granted.request.key))
            # It may wait for a full disk: without it, the request counts as in doubt.
            self._run.requests.append(encode(line))
            apply_request(self._run.session, line)
            return None
        try:
            return self._write_answer(outcome)
        except DiskFull:
            if not self._reserved_space.give_up():
                raise
            log.warning("The disk is full; an answer that is paid for takes the space that was held for it.")
            return self._write_answer(outcome)

    def _write_answer(self, outcome: Answered) -> int:
        session_id = self._run.session.session_id
        return self._append(outcome.as_record(**self._run.stamp(), session_id=session_id))

    def _append(self, answer: AnswerRecord) -> int:
        start = self._run.answers.journal.num_bytes
        offset = self._journal.append(answer)
        self._longest_bytes = max(self._longest_bytes, self._run.answers.journal.num_bytes - start)
        apply_answer(self._run.session, answer)
        return offset

    def _keep_line(self, line: RequestLine) -> None:
        self._run.requests.append_now(encode(line))
        apply_request(self._run.session, line)

    def _whose(self, key: str) -> dict[str, Any]:
        """What each line begins with."""
        return {**self._run.stamp(), "session_id": self._run.session.session_id, "prompt_hash": key}

    def _count_served(self, answer: AnswerRecord) -> None:
        with self._guard:
            self._served = msgspec.structs.replace(
                self._served, count=self._served.count + 1, cost=self._served.cost + answer.cost
            )


def _request_of(answer: AnswerRecord) -> str:
    return answer.request_id if isinstance(answer.request_id, str) else ""


def _end_line(outcome: Refused | Lost, whose: dict[str, Any]) -> RequestLine:
    kind = RequestRefused if isinstance(outcome, Refused) else RequestLost
    return kind(**whose, request_id=outcome.granted.request_id, reason=outcome.reason)
