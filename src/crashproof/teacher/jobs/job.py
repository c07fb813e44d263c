"""The prompts and output of a generation job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crashproof.answers.store import ResponseStore
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigError, DataError
from crashproof.rules.requests import JsonObject, deciding_parameters
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.answer_lines import AnswerLines
from crashproof.teacher.jobs.output import JobOutput, OutputPaths, Written
from crashproof.teacher.jobs.prompts import Prompt, read_prompts
from crashproof.teacher.jobs.question import Question

__all__ = ["GenerationJob", "Question", "Written"]


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

    @property
    def paths(self) -> OutputPaths:
        """Where it writes."""
        return OutputPaths(out=self.out, failed=self.failed, folder=self.folder)

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
        if self.prompts.is_dir() and self.prompts.resolve() in (
            self.out.resolve().parent,
            self.folder.root.resolve(),
        ):
            raise ConfigError(
                f"The output {self.out} would lie among the prompts, and be read as one of them.",
                hint="Choose another folder for --out.",
            )
        for path in (self.out, self.failed, self.paths.partial, self.paths.partial_failed):
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

    def distinct_questions(self) -> Iterator[Question]:
        """Yield the questions whose requests differ, in order; about 100 bytes of each stay in memory.

        Raises:
            ConfigError, DataError: see `questions`.
        """
        seen: set[bytes] = set()
        for question in self.questions():
            digest = question.request.digest
            if digest not in seen:
                seen.add(digest)
                yield question

    def output(self, store: ResponseStore, reasons: Mapping[str, str], *, disk: Disk = REAL_DISK) -> JobOutput:
        """The output, which is written from the store.

        Args:
            store: Where the answers are.
            reasons: Why there is no answer, by key, for questions that are completed.
            disk: Where to write.
        """
        lines = AnswerLines(num_samples=self.num_samples, keeps_truncated=self.keeps_truncated)
        return JobOutput(self.paths, self.questions, lines, store, reasons, disk=disk)

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(self.out.name.removesuffix(".jsonl") + ending)


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
