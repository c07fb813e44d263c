"""Training data from a paid teacher."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import Batch, Sample, TokenizedData, TopK, TrainingData
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.text.aligned_answer import AlignedAnswer, FitCounter, LogprobsMisfit, TokenAligner
from crashproof.distillation.text.chat import render_chat, split_at_answer
from crashproof.distillation.text.tokenizer import encode_document, encode_text, end_id, padding_id
from crashproof.errors import AnswerUnusable, DataError
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher import Answer, Teacher
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer, read_prompts
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["CUT_REASONS", "AnsweredSample", "ApiData", "PromptSource", "answered_sample", "load_prompts", "with_topk"]

log = logging.getLogger("crashproof")

_SECONDS_BETWEEN_LOOKS = 0.5
CUT_REASONS = frozenset({"content_filter", "length"})
"""Finish reasons of answers that were cut: no end mark is learned behind them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """The prompts of a training run, before any answer."""

    path: Path
    prompts: list[Prompt]
    sha256: str

    def documents(self) -> list[str]:
        """All text, for training a tokenizer."""
        return [str(message.get("content") or "") for prompt in self.prompts for message in prompt.messages]


def load_prompts(path: Path) -> PromptSource:
    """Read the prompts of a training run.

    Raises:
        DataError: The file is missing or empty, or a line is malformed; names the line.
    """
    prompts = list(read_prompts(path))
    return PromptSource(path=path, prompts=prompts, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


class ApiData(TrainingData):
    """One sample for each prompt, requested ahead of the training loop.

    The same answers give the same batches, whenever they arrived.
    """

    is_prefetchable = False
    """Answers are asked for ahead, not batches made: only their arrival takes long."""

    def __init__(
        self,
        source: PromptSource,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        top_k: int | None,
        ahead_samples: int,
        open_teacher: Callable[[ProgressTracker], AbstractContextManager[Teacher]],
        interrupts: Interrupts,
    ) -> None:
        """Prepare the prompts; requests begin with `attach`.

        Raises:
            DataError: A prompt leaves no room for an answer.
        """
        self.num_waits = 0
        """Batches that had to wait for an answer."""
        self._source = source
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._top_k = top_k
        self._interrupts = interrupts
        self._aligner = TokenAligner(tokenizer, top_k=top_k) if top_k is not None else None
        self._fits = FitCounter(source.path, num_answers=len(source.prompts))
        self._teacher: Teacher | None = None
        self._ahead_samples = ahead_samples
        self._open_teacher = open_teacher
        self._coming: Iterator[int] = iter(())
        self._asked: deque[tuple[int, Future[Answer]]] = deque()
        self._reported: set[int] = set()
        self._num_counted: dict[tuple[int, ...], int] = {}
        self._require_room()

    def __len__(self) -> int:
        return len(self._source.prompts)

    @contextmanager
    def attach(self, tracker: ProgressTracker | None, upcoming: Iterator[int]) -> Iterator[None]:
        """Open the teacher, and ask it ahead until the loop is done."""
        assert tracker is not None, "the only process asks a paid teacher"
        with self._open_teacher(tracker) as teacher:
            self.connect(teacher, upcoming)
            try:
                yield
            finally:
                self._fits.report()

    def connect(self, teacher: Teacher, coming: Iterator[int]) -> None:
        """Request answers from this teacher; `coming` are the samples in the order of the training loop."""
        self._teacher = teacher
        self._coming = coming
        self._ask_ahead()

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices; waits for their answers.

        Raises:
            TeacherError: A request failed.
            ModelMismatch: The log-probabilities of no answer fit the student's tokens; names the first reason.
            StopRequested: A stop was requested during the wait.
        """
        asked = [self._asked.popleft() if self._asked else (index, self._ask(index)) for index in indices]
        assert indices == [index for index, _ in asked], "the loop takes another order than `connect` was given"
        self._ask_ahead()
        if not all(answer.done() for _, answer in asked):
            self.num_waits += 1
        batch = self._joined([self._sample(index, answer) for index, answer in asked])
        self._num_counted[tuple(indices)] = batch.num_counted()
        return batch

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The predicted tokens of the last `batch` of these samples; they are unknown before it."""
        return {"tokens": self._num_counted.pop(tuple(indices))}

    def _ask_ahead(self) -> None:
        for index in islice(self._coming, max(0, self._ahead_samples - len(self._asked))):
            self._asked.append((index, self._ask(index)))

    def _ask(self, index: int) -> Future[Answer]:
        assert self._teacher is not None, "`connect` comes before the first batch"
        prompt = self._source.prompts[index]
        return self._teacher.begin(
            self._request(prompt), check=lambda answer: problem_with_answer(prompt, answer.message)
        )

    def _request(self, prompt: Prompt) -> TeacherRequest:
        assert self._teacher is not None
        parameters = {name: value for name, value in prompt.parameters.items() if name != "model"}
        return self._teacher.request(prompt.messages, tools=prompt.tools, **parameters)

    def _sample(self, index: int, asked: Future[Answer]) -> AnsweredSample:
        prompt = self._source.prompts[index]
        try:
            answer = self._wait(asked)
        except AnswerUnusable as error:
            if index not in self._reported:
                self._reported.add(index)
                log.warning("Skipping %s, line %d: %s", self._source.path, prompt.line, error)
            return _unanswered(self._ids_before(prompt)[: self._max_length])
        if self._aligner is None:
            return self._from_text(prompt, answer)
        try:
            return self._from_tokens(prompt, answer, self._aligner)
        except LogprobsMisfit as misfit:
            self._fits.add_misfit(prompt.line, misfit)
            return _unanswered(self._ids_before(prompt)[: self._max_length])

    def _wait(self, future: Future[Answer]) -> Answer:
        while True:
            try:
                return future.result(timeout=_SECONDS_BETWEEN_LOOKS)
            except NotYet:
                if self._interrupts.is_requested:
                    raise StopRequested from None

    def _from_text(self, prompt: Prompt, answer: Answer) -> AnsweredSample:
        before, said, after = self._parts(prompt, answer)
        encode = encode_document if prompt.text is not None else encode_text
        ids, spans = encode(self._tokenizer, before + said + after)
        is_predicted = [end > len(before) for _, end in spans]
        if prompt.text is not None:
            ids, is_predicted = [*ids, end_id(self._tokenizer)], [*is_predicted, True]
        cut = slice(0, self._max_length)
        return AnsweredSample(Sample(ids=ids[cut], is_predicted=is_predicted[cut]), [])

    def _from_tokens(self, prompt: Prompt, answer: Answer, aligner: TokenAligner) -> AnsweredSample:
        """The teacher's own tokens, mapped to the student's vocabulary by their bytes."""
        before, said, after = self._parts(prompt, answer)
        is_document = prompt.text is not None
        last = [end_id(self._tokenizer)] if is_document else encode_text(self._tokenizer, after).ids
        if answer.finish_reason in CUT_REASONS:
            last = []
        aligned = aligner.align(answer.logprobs, said, end_id=last[0] if last else None)
        self._fits.add_fit(prompt.line)
        before = before.removesuffix(" ") if aligned.takes_space else before
        prompt_ids = (encode_document if is_document else encode_text)(self._tokenizer, before).ids
        return answered_sample(prompt_ids, aligned, last, max_length=self._max_length)

    def _parts(self, prompt: Prompt, answer: Answer) -> tuple[str, str, str]:
        """The text before the answer, the answer, and what the template adds after it."""
        if prompt.text is not None:
            return prompt.text, answer.text, ""
        messages = [*prompt.messages, {"role": "assistant", "content": answer.text}]
        try:
            return split_at_answer(messages, self._tokenizer)
        except ValueError as error:
            raise DataError(self._source.path, str(error), line=prompt.line) from error

    def _ids_before(self, prompt: Prompt) -> list[int]:
        """The tokens before the answer."""
        if prompt.text is not None:
            return encode_document(self._tokenizer, prompt.text).ids
        text, (start, _) = self._rendered(prompt, "-")
        return encode_text(self._tokenizer, text[:start]).ids

    def _rendered(self, prompt: Prompt, answer: str) -> tuple[str, tuple[int, int]]:
        """A prompt with an answer through the chat template, and the characters of the answer."""
        try:
            text, spans = render_chat([*prompt.messages, {"role": "assistant", "content": answer}], self._tokenizer)
        except ValueError as error:
            raise DataError(self._source.path, str(error), line=prompt.line) from error
        return text, spans[-1]

    def _require_room(self) -> None:
        """Find prompts that are too long before any request is paid for."""
        for prompt in self._source.prompts:
            num_tokens = len(self._ids_before(prompt))
            if num_tokens >= self._max_length:
                raise DataError(
                    self._source.path,
                    f"its {num_tokens:,} tokens leave no room for an answer within {self._max_length:,}",
                    line=prompt.line,
                    hint="Raise data.max_length.",
                )

    def _joined(self, samples: list[AnsweredSample]) -> Batch:
        ids = [torch.tensor(each.sample.ids) for each in samples]
        labels = [
            torch.where(torch.tensor(each.sample.is_predicted), own, IGNORED)
            for each, own in zip(samples, ids, strict=True)
        ]
        starts = torch.tensor([0, *(len(own) for own in ids)]).cumsum(0)
        batch = TokenizedData(
            input_ids=torch.cat(ids),
            labels=torch.cat(labels),
            starts=starts,
            pad_id=padding_id(self._tokenizer),
        ).batch(list(range(len(samples))))
        return batch if self._top_k is None else with_topk(batch, samples, self._top_k)


@dataclass(frozen=True, slots=True)
class AnsweredSample:
    """The tokens of a prompt and its answer, with the teacher's distributions."""

    sample: Sample
    entries: list[tuple[int, list[tuple[int, float]]]]
    """Positions, each with the teacher's entries for the next token."""


def answered_sample(
    prompt_ids: list[int], aligned: AlignedAnswer, last: list[int], *, max_length: int
) -> AnsweredSample:
    """The sample of a prompt, the teacher's tokens, and what is learned behind them."""
    ids = [*prompt_ids, *aligned.ids, *last][:max_length]
    entries = [*aligned.entries, aligned.end_entries] if last else aligned.entries
    return AnsweredSample(
        Sample(ids=ids, is_predicted=[place >= len(prompt_ids) for place in range(len(ids))]),
        # The position before a token predicts it.
        [(len(prompt_ids) + place - 1, known) for place, known in enumerate(entries)],
    )


def _unanswered(ids: list[int]) -> AnsweredSample:
    return AnsweredSample(Sample(ids=ids, is_predicted=[False] * len(ids)), [])


def with_topk(batch: Batch, samples: list[AnsweredSample], top_k: int) -> Batch:
    """A batch of these samples with the teacher's entries."""
    shape = (*batch.labels.shape, top_k)
    ids = torch.full(shape, -1, dtype=torch.long)
    logprobs = torch.full(shape, -math.inf)
    for row, each in enumerate(samples):
        for position, known in each.entries:
            if 0 <= position < len(each.sample.ids) - 1:
                for place, (token, logprob) in enumerate(known):
                    ids[row, position, place] = token
                    logprobs[row, position, place] = logprob
    return replace(batch, topk=TopK(ids=ids, logprobs=logprobs))
