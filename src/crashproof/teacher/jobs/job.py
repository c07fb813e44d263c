"""The prompts and output of a generation job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from crashproof.answers.store import ResponseStore
from crashproof.disk.atomic import write_atomically, write_bytes_atomically
from crashproof.disk.files import REAL_DISK, storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigError, DataError
from crashproof.records.requests import AnswerRecord
from crashproof.rules.requests import JsonObject, TeacherRequest, deciding_parameters
from crashproof.teacher.client.answers import answer_in, finish_reason_of, problem_with, problem_with_ending
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer, read_prompts, trained_line
from crashproof.teacher.replies.endings import ending_of

__all__ = ["GenerationJob", "Question", "Written"]

_NOT_SENT = "not requested yet"
_STORED = "the answer is stored but unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One answer that a job wants."""

    prompt: Prompt
    sample: int
    request: TeacherRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The number of lines written."""

    num_answers: int
    num_failed: int
    incomplete: Counter[str] = field(default_factory=Counter)
    """Answers that are not known to be complete, by their finish reason, whether written or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """All prompts of a file, `num_samples` answers each, in the order of the file."""

    prompts: Path
    out: Path
    form: RequestForm
    num_samples: int = 1
    keeps_truncated: bool = False
    """Whether answers are written that were cut off, filtered, or ended in an unknown way."""

    @property
    def folder(self) -> RunFolder:
        """The job's run folder beside the output: `D.run` for `D.jsonl`."""
        return RunFolder.under(self._beside(".run"))

    @property
    def failed(self) -> Path:
        """The file that lists prompts without an answer."""
        return self._beside(".failed.jsonl")

    def config(self) -> JsonObject:
        """The config of the run: a change here makes it another job."""
        return {
            "base_url": self.form.base_url,
            "model": self.form.model,
            "parameters": deciding_parameters(self.form.parameters),
            "samples": self.num_samples,
        }

    def check_paths(self) -> None:
        """Check that the prompts can be read repeatedly, and that the output does not replace them.

        Raises:
            ConfigError: they cannot, or it would.
        """
        if self.prompts.is_fifo():
            raise ConfigError(
                f"{self.prompts} is a pipe, but prompts are read several times.", hint="Write them to a file."
            )
        if self.out.is_dir():
            raise ConfigError(f"{self.out} is a folder.", hint="Pass a file as --out.")
        if self.prompts.is_dir() and self.out.resolve().parent == self.prompts.resolve():
            raise ConfigError(
                f"The output {self.out} would lie among the prompts, and be read as one of them.",
                hint="Choose another folder for --out.",
            )
        for path in (self.out, self.failed):
            if path.resolve() == self.prompts.resolve():
                raise ConfigError(f"The job would overwrite its own prompts in {path}.", hint="Choose another --out.")

    def questions(self) -> Iterator[Question]:
        """Yield every question, one prompt at a time.

        Raises:
            ConfigError: a common parameter is not supported in a job.
            DataError: a line is malformed, names another model, or sets such a parameter; names the line.
        """
        problem = _problem_with_parameters(self.form.parameters)
        if problem is not None:
            raise ConfigError(f"{problem[0].upper()}{problem[1:]}.", hint="Leave it out.")
        for prompt in read_prompts(self.prompts):
            parameters = {name: value for name, value in prompt.parameters.items() if name != "model"}
            model = prompt.parameters.get("model", self.form.model)
            if model != self.form.model:
                reason = f"its model is {model!r}, the job's is {self.form.model!r}"
                raise _error(prompt, reason, hint="Run one job per model.")
            problem = _problem_with_parameters(parameters)
            if problem is not None:
                raise _error(prompt, problem, hint="Leave it out.")
            for sample in range(self.num_samples):
                request = self.form.fill(prompt.messages, tools=prompt.tools, sample=sample, **parameters)
                yield Question(prompt=prompt, sample=sample, request=request)

    def count(self) -> int:
        """Count the questions; reads, and so checks, every prompt."""
        return sum(1 for _ in self.questions())

    def write(self, store: ResponseStore, reasons: Mapping[str, str]) -> Written:
        """Write all answers in order, then the prompts without one to `failed`; each file atomically.

        `reasons` gives, by key, why there is no answer.

        Raises:
            DiskFull: the file that did not fit is unchanged.
        """
        failed: list[JsonObject] = []
        incomplete: Counter[str] = Counter()
        num_answers = 0

        def write_lines(write: Callable[[bytes], object]) -> None:
            nonlocal num_answers
            for question in self.questions():
                stored = _Stored.read(question, store)
                incomplete.update([f"{stored.finish_reason}"] if stored.is_cut else [])
                try:
                    line = self._trained_line(question, stored, reasons)
                except ValueError as error:
                    failed.append(_failed_line(question, str(error), stored, num_samples=self.num_samples))
                else:
                    num_answers += 1
                    write(_encoder.encode(line) + b"\n")

        write_atomically(self.out, lambda file: write_lines(file.write))
        if failed:
            write_bytes_atomically(self.failed, b"".join(_encoder.encode(line) + b"\n" for line in failed))
        else:
            with storage_errors(self.failed):
                REAL_DISK.remove_file(self.failed)
        return Written(num_answers=num_answers, num_failed=len(failed), incomplete=incomplete)

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(self.out.name.removesuffix(".jsonl") + ending)

    def _trained_line(self, question: Question, stored: _Stored, reasons: Mapping[str, str]) -> JsonObject:
        """Raises ValueError with the reason if there is none."""
        if stored.record is None:
            raise ValueError(reasons.get(question.request.key, _NOT_SENT))
        if isinstance(stored.record.problem, str):
            raise ValueError(f"{_STORED}: {stored.record.problem}")
        answer = answer_in(stored.record)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What the store has for a question."""

    record: AnswerRecord | None
    finish_reason: str | None
    is_cut: bool
    """Whether its finish reason speaks against its being complete."""

    @classmethod
    def read(cls, question: Question, store: ResponseStore) -> _Stored:
        record = store.read(question.request.key)
        if record is None:
            return cls(record=None, finish_reason=None, is_cut=False)
        finish_reason = finish_reason_of(record)
        is_cut = finish_reason is not None and not ending_of(finish_reason).may_be_whole
        return cls(record=record, finish_reason=finish_reason, is_cut=is_cut)


_encoder = msgspec.json.Encoder()


def _error(prompt: Prompt, reason: str, *, hint: str) -> DataError:
    assert prompt.place is not None, "prompts are read from files"
    return prompt.place.error(reason, hint=hint)


def _problem_with_parameters(parameters: Mapping[str, object]) -> str | None:
    """Why a job does not support them, or None."""
    if parameters.get("stream"):
        return '"stream" is set, but answers are stored complete'
    if parameters.get("n") not in (None, 1):
        return '"n" requests several answers, of which only one would be used; pass --samples instead'
    return None


def _failed_line(question: Question, reason: str, stored: _Stored, *, num_samples: int) -> JsonObject:
    prompt = question.prompt
    asked: JsonObject = {"prompt": prompt.text} if prompt.text is not None else {"messages": prompt.messages}
    if prompt.tools:
        asked["tools"] = prompt.tools
    details: JsonObject = {"line": prompt.line, "reason": reason, "key": question.request.key}
    if stored.record is not None:
        details["finish_reason"] = stored.finish_reason
    if num_samples > 1:
        details["failed_sample"] = question.sample
    # Last, so that no field of the prompt hides the reason.
    return asked | prompt.extra | details
