"""Run a job through a provider's batch API.

A batch costs less and takes hours. The requests without an answer are written as batch files; the results go into the
same store, where the job finds them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path

import msgspec

from crashproof.answers.store import Answered, Granted, Intent, ResponseStore
from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK
from crashproof.disk.spool.spooled_texts import SpooledTexts
from crashproof.errors import ConfigError, DataError
from crashproof.rules.requests import JsonObject, TeacherRequest, teacher_request
from crashproof.teacher.client.answers import note_problem
from crashproof.teacher.client.bills import Billing
from crashproof.teacher.client.prices import Price, PriceTable, price_of
from crashproof.teacher.jobs.batch_files import MOST_LINES, BatchResult, batch_line, batches, read_batch_results
from crashproof.teacher.jobs.engine import EngineResult
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.question import groups_of

__all__ = ["BatchRead", "BatchWritten", "ReadBatchEngine", "WriteBatchEngine", "read_batch", "write_batch"]

_ANSWERS_PER_SYNC = 256
"""Answers stored with one sync."""
_LOOKED_UP_TOGETHER = 64
"""Questions for whose answers the store is asked at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWritten:
    """The result of `write_batch`."""

    files: list[Path]
    num_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRead:
    """The result of `read_batch`."""

    num_answers: int
    """Answers that are new in the store."""
    num_known: int
    """Answers that the store had already."""
    reasons: MutableMapping[str, str]
    """Why there is no answer, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBatchEngine:
    """Writes the requests to batch files instead of sending them."""

    path: Path

    def ask_all(
        self,
        job: GenerationJob,
        store: ResponseStore,
        *,
        reasons: MutableMapping[str, str],
        on_end: Callable[[int], None],
    ) -> EngineResult:
        """See `Engine`; the job counts as stopped until the results are read."""
        written = write_batch(job, store, self.path)
        names = ", ".join(str(file) for file in written.files) or "no file, since every prompt has an answer"
        return EngineResult(is_stopped=True, note=f"{written.num_requests:,} requests are in {names}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBatchEngine:
    """Stores the results of a batch."""

    paths: list[Path]
    prices: PriceTable

    def ask_all(
        self,
        job: GenerationJob,
        store: ResponseStore,
        *,
        reasons: MutableMapping[str, str],
        on_end: Callable[[int], None],
    ) -> EngineResult:
        """See `Engine`."""
        read = read_batch(job, store, self.paths, price_of(job.form.model, self.prices), reasons=reasons)
        on_end(read.num_answers + read.num_known)
        note = f"{read.num_answers:,} answers of the batch are new, {read.num_known:,} were stored already."
        return EngineResult(reasons=read.reasons, note=note)


def write_batch(
    job: GenerationJob, store: ResponseStore, path: Path, *, most_lines: int = MOST_LINES
) -> BatchWritten:
    """Write every request without an answer once; what exceeds one file goes to `B.1.jsonl` and so on.

    Each line's `custom_id` is the request's key; a provider takes at most `most_lines` lines per file.

    Raises:
        ConfigError: a batch file would replace the prompts or the output.
        DiskFull: the file that did not fit was not written.
    """
    others = (job.prompts, job.out, job.failed, job.paths.partial, job.paths.partial_failed)
    if path.resolve() in {each.resolve() for each in others}:
        raise ConfigError(f"The batch would overwrite {path}.", hint="Choose another file for it.")
    REAL_DISK.make_folders(path.absolute().parent)
    files: list[Path] = []
    num_requests = 0
    for number, batch in enumerate(batches(_missing_lines(job, store), most_lines)):
        files.append(path.with_suffix(f".{number}{path.suffix}") if number else path)
        num_requests += len(batch.custom_ids)
        write_bytes_atomically(files[-1], batch.content)
    return BatchWritten(files=files, num_requests=num_requests)


def read_batch(
    job: GenerationJob,
    store: ResponseStore,
    paths: list[Path],
    price: Price,
    *,
    reasons: MutableMapping[str, str] | None = None,
) -> BatchRead:
    """Store a batch's results, at the batch price; `reasons` takes why there is no answer.

    Raises:
        DataError: a line is malformed, or answers no request of this job; nothing was stored.
        DiskFull, StoreUnavailable: the results before it are stored.
    """
    requests = _SpooledRequests(job)
    for path in paths:
        # All files are checked before anything is stored.
        deque(_read_results(path, requests), maxlen=0)
    results = chain.from_iterable(_read_results(path, requests) for path in paths)
    billing = Billing(price.in_batch())
    num_answers = num_known = 0
    reasons = {} if reasons is None else reasons
    while some := list(islice(results, _ANSWERS_PER_SYNC)):
        reasons.update(
            (request.key, f"the batch reports: {result.failure}") for request, result in some if result.failure
        )
        answers = [(request, result.body) for request, result in some if result.body is not None]
        num_new = _store_new(answers, store, billing)
        num_answers += num_new
        num_known += len(answers) - num_new
    billing.report()
    return BatchRead(num_answers=num_answers, num_known=num_known, reasons=reasons)


def _missing_lines(job: GenerationJob, store: ResponseStore) -> Iterator[JsonObject]:
    for some in groups_of(job.distinct_questions(), _LOOKED_UP_TOGETHER):
        records = store.read_all([question.key for question in some])
        for question, record in zip(some, records, strict=True):
            if record is None:
                yield batch_line(question.key, question.request.body)


class _SpooledRequests:
    """The requests of a job by custom id; their bodies lie on disk."""

    def __init__(self, job: GenerationJob) -> None:
        REAL_DISK.make_folders(job.folder.root)
        self._base_url = job.form.base_url
        self._requests = SpooledTexts(job.folder.root)
        """As JSON, by key."""
        self._keys = SpooledTexts(job.folder.root)
        """By the custom id of the prompt."""
        for question in job.questions():
            if question.prompt.custom_id is not None and question.sample == 0:
                self._keys[question.prompt.custom_id] = question.key
            if question.key not in self._requests:
                request = question.request
                self._requests[question.key] = msgspec.json.encode([request.sample, request.body]).decode()

    def get(self, custom_id: str) -> TeacherRequest | None:
        """The request that a result answers; None for one of another job."""
        key = self._keys.get(custom_id, custom_id)
        if key not in self._requests:
            return None
        sample, body = msgspec.json.decode(self._requests[key], type=tuple[int, JsonObject])
        return teacher_request(self._base_url, body, sample=sample)


def _read_results(path: Path, requests: _SpooledRequests) -> Iterator[tuple[TeacherRequest, BatchResult]]:
    for result in read_batch_results(path):
        request = requests.get(result.custom_id)
        if request is None:
            reason = f"its custom_id {result.custom_id!r} does not belong to this job"
            raise DataError(path, reason, line=result.line, hint="Pass the prompts that the batch was made from.")
        yield request, result


def _store_new(answers: list[tuple[TeacherRequest, JsonObject]], store: ResponseStore, billing: Billing) -> int:
    """Store the answers that are new; returns their number."""
    # The batch is paid for and its results are in the file: no budget applies, nothing is in doubt.
    intents = [Intent(request=request, most=Decimal(0)) for request, _ in answers]
    verdicts = store.begin(intents, budget=None)
    new = [
        note_problem(Answered(granted=verdict, cost=_cost(verdict, body, billing), response=body))
        for (_, body), verdict in zip(answers, verdicts, strict=True)
        if isinstance(verdict, Granted)
    ]
    store.finish(new)
    return len(new)


def _cost(granted: Granted, body: JsonObject, billing: Billing) -> Decimal:
    # The request's own worst case: no budget applies, so its intent has none.
    return billing.cost(body, granted.request.body, most=billing.worst_case(granted.request.body))
