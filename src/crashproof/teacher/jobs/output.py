"""Write a job's answers in the order of its prompts, as they come.

Lines go to working files in the run's folder, where anybody may look at them, up to the first question that is still
open. Once all are completed the files get their final names. Of the questions, only those around that place are in
memory.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from crashproof.answers.store import ResponseStore
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.disk.spool.growing_file import GrowingFile
from crashproof.disk.spool.spooled_texts import SpooledTexts
from crashproof.errors import DiskFull, StorageUnwritable, StoreUnavailable
from crashproof.records.requests import AnswerRecord
from crashproof.teacher.jobs.answer_lines import AnswerLines, Judged
from crashproof.teacher.jobs.question import Question

__all__ = ["JobOutput", "OutputPaths", "Written"]

_AT_A_TIME = 32
"""Questions whose answers are read together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The number of lines written."""

    num_answers: int
    num_failed: int
    incomplete: Counter[str] = field(default_factory=Counter)
    """Answers that are not known to be complete, by their finish reason, whether written or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPaths:
    """Where a job writes."""

    out: Path
    failed: Path
    folder: RunFolder

    @property
    def partial(self) -> Path:
        """The answers while the job works."""
        return self.folder.root / "answers.partial.jsonl"

    @property
    def partial_failed(self) -> Path:
        """The prompts without an answer while the job works."""
        return self.folder.root / "failed.partial.jsonl"


class JobOutput:
    """The output of one attempt at a job."""

    def __init__(
        self,
        paths: OutputPaths,
        questions: Callable[[], Iterator[Question]],
        lines: AnswerLines,
        store: ResponseStore,
        reasons: Mapping[str, str],
        *,
        disk: Disk = REAL_DISK,
    ) -> None:
        """`questions` yields all of them anew; `reasons` says of those that are completed why they have no answer."""
        self._paths = paths
        self._questions = questions
        self._lines = lines
        self._store = store
        self._reasons = reasons
        self._disk = disk
        self._pass: _Pass | None = None

    def advance(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Write what is completed, in order, up to the first question that is not, or until told to stop.

        After any error it may be called again, and so may `finish`.

        Raises:
            DiskFull, StorageUnwritable: there is no partial output any more.
            DataError: a prompt has become malformed.
            StoreUnavailable: nothing is lost.
        """
        with self._dropping_a_broken_pass():
            self._current().go_on(is_final=False, until=until)

    def finish(self) -> Written:
        """Write all the rest, whether it has an answer or not, and give the files their names.

        Raises:
            DiskFull, StorageUnwritable: the output is unchanged, and there is no partial one any more.
            DataError, StoreUnavailable: the output is unchanged.
        """
        with self._dropping_a_broken_pass():
            self._current().go_on(is_final=True)
            if self._current().is_outdated():
                # A question failed, and an equal one was answered later.
                self.discard()
                self._current().go_on(is_final=True)
            self._current().publish()
            written = self._current().written
        self._pass = None
        return written

    def close(self) -> None:
        """Leave the partial output as it is."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def discard(self) -> None:
        """Remove the partial output."""
        if self._pass is not None:
            self._pass.discard()
            self._pass = None

    @contextmanager
    def _dropping_a_broken_pass(self) -> Iterator[None]:
        """Begin anew after an error that may have left a pass in the middle of something."""
        try:
            yield
        except StoreUnavailable:
            raise
        except (DiskFull, StorageUnwritable):
            # The space is for paid answers.
            self.discard()
            raise
        except BaseException:
            self.close()
            raise

    def _current(self) -> _Pass:
        if self._pass is None:
            self._disk.make_folders(self._paths.folder.root)
            self._pass = _Pass(
                self._paths, self._questions(), self._lines, self._store, self._reasons, disk=self._disk
            )
        return self._pass


class _Pass:
    """One pass over all questions."""

    def __init__(
        self,
        paths: OutputPaths,
        questions: Iterator[Question],
        lines: AnswerLines,
        store: ResponseStore,
        reasons: Mapping[str, str],
        *,
        disk: Disk,
    ) -> None:
        self._paths = paths
        self._questions = questions
        self._lines = lines
        self._store = store
        self._reasons = reasons
        self._disk = disk
        self._ahead: deque[Question] = deque()
        """Read, and not written yet."""
        self._incomplete: Counter[str] = Counter()
        self._num_answers = self._num_failed = 0
        self._answers = GrowingFile(paths.partial, disk=disk)
        self._failed = GrowingFile(paths.partial_failed, disk=disk)
        self._failed_payments = SpooledTexts(paths.folder.root, disk=disk)
        """What was paid for each of these questions, by key."""

    @property
    def written(self) -> Written:
        """What is written so far."""
        return Written(num_answers=self._num_answers, num_failed=self._num_failed, incomplete=self._incomplete)

    def go_on(self, *, is_final: bool, until: Callable[[], bool] = lambda: False) -> None:
        """Write what is completed; if final, all."""
        while not until() and self._read_ahead():
            for judged in self._judged(list(self._ahead), is_final=is_final):
                self._write(judged)
                self._ahead.popleft()
            if self._ahead:
                break
        self._answers.flush()
        self._failed.flush()

    def is_outdated(self) -> bool:
        """Whether a question that has failed has another answer by now."""
        failed = iter(self._failed_payments.items())
        while some := list(islice(failed, _AT_A_TIME)):
            records = self._store.read_all([key for key, _ in some])
            if any(payment != _payment_of(record) for (_, payment), record in zip(some, records, strict=True)):
                return True
        return False

    def publish(self) -> None:
        """Give the files their names; of failed prompts only if there are any."""
        self._answers.publish(self._paths.out)
        if self._num_failed:
            self._failed.publish(self._paths.failed)
            return
        self._failed.discard()
        with storage_errors(self._paths.failed):
            self._disk.remove_file(self._paths.failed)

    def close(self) -> None:
        self._answers.close()
        self._failed.close()

    def discard(self) -> None:
        self._answers.discard()
        self._failed.discard()

    def _read_ahead(self) -> bool:
        """Fill the questions ahead; returns whether there are any."""
        self._ahead += islice(self._questions, _AT_A_TIME - len(self._ahead))
        return bool(self._ahead)

    def _judged(self, questions: Sequence[Question], *, is_final: bool) -> Iterator[Judged]:
        """Judge questions, up to the first that is not completed."""
        records = self._store.read_all([question.key for question in questions])
        for question, record in zip(questions, records, strict=True):
            judged = self._lines.judge(question, record, reason=self._reasons.get(question.key))
            if judged.line is None and not is_final and question.key not in self._reasons:
                return
            yield judged

    def _write(self, judged: Judged) -> None:
        if judged.incomplete is not None:
            self._incomplete[judged.incomplete] += 1
        if judged.line is not None:
            self._num_answers += 1
            self._answers.append(judged.line)
            return
        self._num_failed += 1
        self._failed.append(self._lines.failed_line(judged))
        self._failed_payments[judged.question.key] = _payment_of(judged.record)


def _payment_of(record: AnswerRecord | None) -> str:
    """What tells an answer from another one to the same question."""
    if record is None:
        return "none"
    return record.request_id if isinstance(record.request_id, str) else "unknown"
