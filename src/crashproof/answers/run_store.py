"""The store of one run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from itertools import islice
from typing import Protocol

import msgspec

from crashproof.answers.answer_journal import AnswerJournal
from crashproof.answers.store import Answered, Busy, Granted, Intent, Outcome, OverBudget, Refused, Verdict
from crashproof.disk.files import Disk
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.reserved_space import ReservedSpace
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import DiskFull, InvalidMetric, StorageError
from crashproof.records.events import AnswersRecovered, Event, Stamp
from crashproof.records.lines.codec import encode, nonfinite_names
from crashproof.records.requests import (
    AnswerMarked,
    AnswerRecord,
    RequestLine,
    RequestLost,
    RequestRefused,
    RequestSent,
)
from crashproof.records.session import TrainingSession
from crashproof.rules.requests import JsonObject, TeacherRequest
from crashproof.rules.session import apply_answer, apply_request
from crashproof.rules.spending import Spending, spending_of

__all__ = ["RunResponses"]

log = logging.getLogger("crashproof")

_MIN_RESERVED_BYTES = 256 << 10
"""Disk space reserved for each request in flight; twice the longest answer so far, if that is more."""

_BUSY_SECONDS = 0.05
_NONE_SERVED = AnswersRecovered(timestamp=0.0, attempt=0, count=0)


class AnsweredRun(Protocol):
    """What the store needs from its run."""

    folder: RunFolder
    """The run's folder."""
    answers: QueueingJournal
    """`api_recovery.jsonl`."""
    requests: QueueingJournal
    """`api_requests.jsonl`."""

    @property
    def session(self) -> TrainingSession:
        """The session that keeps the sums."""
        ...

    def stamp(self) -> Stamp:
        """Timestamp and attempt for a line written now."""
        ...

    def keep(self, event: Event) -> None:
        """Journal an event."""
        ...


class Guard(AbstractContextManager[None], Protocol):
    """Held while the session or a journal changes; entering it raises `RunClosed` if the run is not open."""

    lock: threading.RLock
    """The lock alone, without the check that the run is open."""

    def require_open(self) -> None:
        """Raise `RunClosed` unless the run may still be written."""
        ...


class RunResponses:
    """A `ResponseStore` in the run's journals, for the threads of this process; the run's lock keeps others out."""

    def __init__(self, run: AnsweredRun, guard: Guard, *, disk: Disk) -> None:
        """Take the tracker's `guard` of the session; nobody holds it while waiting for the disk."""
        self._run = run
        self._guard = guard
        self._journal = AnswerJournal(run.answers, run.folder, disk=disk)
        self._reserved_space = ReservedSpace(run.folder.reserved_space, disk=disk)
        self._in_flight: dict[str, str] = {}
        """The id of the request in flight, by key."""
        self._written: dict[str, int | None] = {}
        """Outcomes written but not yet durable, by request id; the value is the offset of an answer."""
        self._refused: dict[str, Outcome] = {}
        """Outcomes that the disk refused to store, by key."""
        self._longest_bytes = 0
        self._marked_list: list[str] = []
        self._marked: set[str] = set()
        """What the session lists as marked."""
        self._served = _NONE_SERVED

    def forget_index(self) -> None:
        """Read the journal of answers again at the next question: it has been written anew."""
        self._journal.forget_index()

    def keep(self, prompt_hash: str, response: Mapping[str, object], cost: Decimal) -> None:
        """Store an answer that the caller requested itself.

        Raises:
            InvalidMetric: it is not made of JSON values.
            DiskFull: it was not stored.
        """
        self._journal.load_index()
        with self._guard:
            try:
                answer = AnswerRecord(
                    **self._line_head(prompt_hash),
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
        """Store an answer to a request of another store, which cannot take it now.

        Raises:
            DiskFull: it was not stored.
        """
        self._journal.load_index()
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

    def serve_all(self, keys: Sequence[str]) -> list[AnswerRecord | None]:
        """See `ResponseStore`."""
        return [self.serve(key) for key in keys]

    def read_all(self, keys: Sequence[str]) -> Iterator[AnswerRecord | None]:
        """See `ResponseStore`."""
        return map(self.read, keys)

    def lacks(self, key: str) -> bool:
        """See `ResponseStore`; no other process adds answers here."""
        return self._journal.lacks(key)

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """See `ResponseStore`."""
        self._journal.load_index()
        self._retry_refused_outcomes()
        verdicts: list[Verdict] = []
        try:
            self._decide_all(intents, budget, verdicts)
        except BaseException:
            # The caller gets no verdict, so none is sent.
            granted = [verdict for verdict in verdicts if isinstance(verdict, Granted)]
            self.finish([Refused(granted=each, reason="never sent") for each in granted])
            raise
        for verdict in verdicts:
            if isinstance(verdict, AnswerRecord):
                self._count_served(verdict)
        return verdicts

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """See `ResponseStore`; an outcome that the disk refuses is retried before the next request."""
        with self._guard:
            unfinished = [
                each for each in outcomes if self._in_flight.get(each.granted.request.key) == each.granted.request_id
            ]
        try:
            self._write_outcomes(unfinished)
        except (StorageError, OSError):
            self._refused.update({each.granted.request.key: each for each in unfinished})
            raise
        with self._guard.lock:
            for outcome in unfinished:
                self._in_flight.pop(outcome.granted.request.key, None)
                self._written.pop(outcome.granted.request_id, None)
                self._refused.pop(outcome.granted.request.key, None)

    def mark(self, key: str, problem: str) -> None:
        """See `ResponseStore`."""
        answer = self.read(key)
        if answer is None or isinstance(answer.problem, str):
            # An answer that came with a problem counts as unusable already.
            return
        request_id = _request_of(answer)
        with self._guard:
            if not self._is_marked(request_id or key):
                self._keep_line(
                    AnswerMarked(**self._line_head(key), request_id=request_id, problem=problem, cost=answer.cost)
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
        """Journal how many answers were served from disk; one line for many, since they cost nothing."""
        with self._guard.lock:
            if self._served.count:
                served, self._served = self._served, _NONE_SERVED
                self._run.keep(msgspec.structs.replace(served, **self._run.stamp()))

    def leave_to_parent(self) -> None:
        """Drop the count in a forked child; the parent journals it."""
        self._served = _NONE_SERVED

    def save_index(self, *, only_if_due: bool = False) -> None:
        """See `AnswerJournal.save_index`."""
        self._journal.save_index(only_if_due=only_if_due)

    def close(self) -> None:
        """Release the reserved disk space."""
        self._reserved_space.release()

    def _decide_all(self, intents: Sequence[Intent], budget: Decimal | None, verdicts: list[Verdict]) -> None:
        """Append to `verdicts`; what is granted is durable when this returns."""
        with self._guard:
            reserved_bytes = max(_MIN_RESERVED_BYTES, 2 * self._longest_bytes)
            self._reserved_space.reserve((len(self._in_flight) + len(intents)) * reserved_bytes)
            for intent in intents:
                verdicts.append(self._decide(intent, budget))  # noqa: PERF401 - the caller keeps what precedes an error
        if any(isinstance(verdict, Granted) for verdict in verdicts):
            self._run.requests.journal.sync()

    def _decide(self, intent: Intent, budget: Decimal | None) -> Verdict:
        key = intent.request.key
        if key in self._in_flight:
            return Busy(holder="this process", seconds=_BUSY_SECONDS)
        answer = self._journal.get(key)
        # A newer answer may have replaced the unusable one by now.
        if answer is not None and not (intent.replaces and self._is_unusable(answer)):
            return answer
        if budget is not None:
            spending = spending_of(self._run.session)
            if spending.committed + intent.most > budget:
                return OverBudget(spending=spending)
        granted = Granted(request_id=os.urandom(8).hex(), request=intent.request, most=intent.most)
        self._keep_line(
            RequestSent(
                **self._line_head(key), request_id=granted.request_id, model=intent.request.model, most=intent.most
            )
        )
        self._in_flight[key] = granted.request_id
        return granted

    def _is_unusable(self, answer: AnswerRecord) -> bool:
        return isinstance(answer.problem, str) or self._is_marked(_request_of(answer) or answer.prompt_hash)

    def _is_marked(self, name: str) -> bool:
        """Whether the session lists an answer as marked; a list alone would take longer with each that is."""
        listed = self._run.session.api_responses_marked
        if listed is not self._marked_list or len(listed) < len(self._marked):
            self._marked_list, self._marked = listed, set()
        self._marked.update(islice(listed, len(self._marked), None))
        return name in self._marked

    def _retry_refused_outcomes(self) -> None:
        """Store paid answers before paying for more; this also releases what is reserved for them."""
        with self._guard.lock:
            refused = list(self._refused.values())
        if refused:
            self.finish(refused)

    def _write_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        with self._guard.lock:
            for outcome in outcomes:
                request_id = outcome.granted.request_id
                # After a full disk this is called again with the same outcomes.
                if request_id not in self._written:
                    self._written[request_id] = self._write_outcome(outcome)
            offsets = [self._written[each.granted.request_id] for each in outcomes]
        answers = [offset for offset in offsets if offset is not None]
        if answers:
            self._journal.publish(answers)

    def _write_outcome(self, outcome: Outcome) -> int | None:
        """Write to the journals; returns the offset of an answer."""
        if not isinstance(outcome, Answered):
            kind = RequestRefused if isinstance(outcome, Refused) else RequestLost
            head = self._line_head(outcome.granted.request.key)
            line = kind(**head, request_id=outcome.granted.request_id, reason=outcome.reason)
            # May be queued while the disk is full: without this line the request counts as in doubt.
            self._run.requests.append(encode(line))
            apply_request(self._run.session, line)
            return None
        try:
            return self._write_answer(outcome)
        except DiskFull:
            if not self._reserved_space.release():
                raise
            log.warning("The disk is full; using reserved space to store a paid answer.")
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

    def _line_head(self, key: str) -> JsonObject:
        """The fields that every line begins with."""
        return {**self._run.stamp(), "session_id": self._run.session.session_id, "prompt_hash": key}

    def _count_served(self, answer: AnswerRecord) -> None:
        with self._guard:
            self._served = msgspec.structs.replace(
                self._served, count=self._served.count + 1, cost=self._served.cost + answer.cost
            )


def _request_of(answer: AnswerRecord) -> str:
    return answer.request_id if isinstance(answer.request_id, str) else ""
