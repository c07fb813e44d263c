"""Let a provider's batch answer a job's questions.

A batch costs less and takes hours. What a job still needs is written as batch files; what comes back fills the same
store, so that the job finds it there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any

from crashproof.answers.store import Answered, Granted, Intent, ResponseStore
from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK
from crashproof.errors import ConfigError, DataError
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.answers import answer_in
from crashproof.teacher.client.prices import Price, PriceTable, Usage, price_of
from crashproof.teacher.jobs.batch_files import MOST_LINES, BatchResult, batch_line, batches, read_batch_results
from crashproof.teacher.jobs.generation import Asked
from crashproof.teacher.jobs.job import GenerationJob

__all__ = ["BatchRead", "BatchWritten", "ReadBatchEngine", "WriteBatchEngine", "read_batch", "write_batch"]

_TAKEN_AT_ONCE = 256
"""Answers that share a sync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWritten:
    """What was written."""

    files: list[Path]
    num_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRead:
    """What was read."""

    num_answers: int
    """New in the store."""
    num_known: int
    """There already."""
    reasons: dict[str, str]
    """Why there is no answer, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBatchEngine:
    """Writes down what would be asked."""

    path: Path

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> Asked:
        """See `Engine`; the job is stopped here, until the results come."""
        written = write_batch(job, store, self.path)
        names = ", ".join(str(file) for file in written.files) or "no file: every prompt has its answer"
        return Asked(is_stopped=True, note=f"{written.num_requests:,} requests are in {names}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBatchEngine:
    """Takes what a batch has brought."""

    paths: list[Path]
    prices: PriceTable

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> Asked:
        """See `Engine`."""
        read = read_batch(job, store, self.paths, price_of(job.form.model, self.prices))
        on_end(read.num_answers + read.num_known)
        note = f"{read.num_answers:,} answers of the batch are new, {read.num_known:,} were there."
        return Asked(reasons=read.reasons, note=note)


def write_batch(
    job: GenerationJob, store: ResponseStore, path: Path, *, most_lines: int = MOST_LINES
) -> BatchWritten:
    """Write every request that has no answer yet, once; several files, `B.1.jsonl` and on, where one is too small.

    Each line's `custom_id` is the request's key; a provider takes at most `most_lines` of them a file.

    Raises:
        ConfigError: it would replace the prompts or the output.
        DiskFull: the file that did not fit is not there.
    """
    if path.resolve() in {each.resolve() for each in (job.prompts, job.out, job.failed)}:
        raise ConfigError(f"The batch would be written over {path}.", hint="Choose another file for it.")
    REAL_DISK.make_folders(path.absolute().parent)
    files: list[Path] = []
    num_requests = 0
    for number, batch in enumerate(batches(_lines(job, store), most_lines)):
        files.append(path.with_suffix(f".{number}{path.suffix}") if number else path)
        num_requests += len(batch.custom_ids)
        write_bytes_atomically(files[-1], batch.content)
    return BatchWritten(files=files, num_requests=num_requests)


def read_batch(job: GenerationJob, store: ResponseStore, paths: list[Path], price: Price) -> BatchRead:
    """Take a batch's results into the store, at the price of a batch.

    Raises:
        DataError: a line is malformed, or answers a question that this job does not ask; nothing was taken.
        DiskFull, StoreUnavailable: those before it are kept.
    """
    requests = _requests_by_custom_id(job)
    for path in paths:
        # All of it is looked at before any of it is taken.
        deque(_results(path, requests), maxlen=0)
    results = chain.from_iterable(_results(path, requests) for path in paths)
    num_answers = num_known = 0
    reasons: dict[str, str] = {}
    while some := list(islice(results, _TAKEN_AT_ONCE)):
        answers = []
        for request, result in some:
            if result.body is None:
                reasons[request.key] = f"the batch says: {result.failure}"
            else:
                answers.append((request, result.body))
        num_taken = _take(answers, store, price.in_batch())
        num_answers += num_taken
        num_known += len(answers) - num_taken
    return BatchRead(num_answers=num_answers, num_known=num_known, reasons=reasons)


def _lines(job: GenerationJob, store: ResponseStore) -> Iterator[dict[str, Any]]:
    written: set[str] = set()
    for question in job.questions():
        request = question.request
        if request.key not in written and store.read(request.key) is None:
            written.add(request.key)
            yield batch_line(request.key, request.body)


def _requests_by_custom_id(job: GenerationJob) -> dict[str, TeacherRequest]:
    requests: dict[str, TeacherRequest] = {}
    for question in job.questions():
        requests[question.request.key] = question.request
        if question.prompt.custom_id is not None and question.sample == 0:
            requests[question.prompt.custom_id] = question.request
    return requests


def _results(path: Path, requests: Mapping[str, TeacherRequest]) -> Iterator[tuple[TeacherRequest, BatchResult]]:
    for result in read_batch_results(path):
        request = requests.get(result.custom_id)
        if request is None:
            reason = f"its custom_id {result.custom_id!r} is none of this job's"
            raise DataError(path, reason, line=result.line, hint="Pass the prompts that the batch was made of.")
        yield request, result


def _take(answers: list[tuple[TeacherRequest, dict[str, Any]]], store: ResponseStore, price: Price) -> int:
    """Keep those that the store has none for yet; says how many."""
    # The batch is paid for already, and its results are in the file: no budget, and nothing in doubt.
    intents = [Intent(request=request, most=Decimal(0)) for request, _ in answers]
    verdicts = store.begin(intents, budget=None)
    taken = [
        _answered(verdict, body, price)
        for (_, body), verdict in zip(answers, verdicts, strict=True)
        if isinstance(verdict, Granted)
    ]
    store.finish(taken)
    return len(taken)


def _answered(granted: Granted, body: dict[str, Any], price: Price) -> Answered:
    answered = Answered(granted=granted, cost=_cost(granted, body, price), response=body)
    try:
        answer_in(answered.as_record(timestamp=0.0, session_id="", attempt=0))
    except ValueError as error:
        return replace(answered, problem=str(error))
    return answered


def _cost(granted: Granted, body: dict[str, Any], price: Price) -> Decimal:
    usage = Usage.read(body)
    if usage is not None:
        return price.cost(usage)
    try:
        return price.worst_case(granted.request.body)
    except ConfigError:
        # Nothing bounds it, and no budget asks.
        return Decimal(0)
