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
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import Batch, Sample, TokenizedData, TopK, TrainingData
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.text.chat import render_chat
from crashproof.distillation.text.token_bytes import BytesToIds, token_bytes
from crashproof.distillation.text.tokenizer import encode_text, end_id, padding_id
from crashproof.errors import AnswerUnusable, DataError, ModelMismatch
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher import Answer, Teacher
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer, read_prompts
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["ApiData", "PromptSource", "load_prompts"]

log = logging.getLogger("crashproof")

_SECONDS_BETWEEN_LOOKS = 0.5


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
        self._ids_of_bytes = BytesToIds(token_bytes(tokenizer)) if top_k is not None else None
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
            yield

    def connect(self, teacher: Teacher, coming: Iterator[int]) -> None:
        """Request answers from this teacher; `coming` are the samples in the order of the training loop."""
        self._teacher = teacher
        self._coming = coming
        self._ask_ahead()

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices; waits for their answers.

        Raises:
            TeacherError: A request failed.
            ModelMismatch: The student has no such token as the teacher; names the first.
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

    def _sample(self, index: int, asked: Future[Answer]) -> _AnsweredSample:
        prompt = self._source.prompts[index]
        try:
            answer = self._wait(asked)
        except AnswerUnusable as error:
            if index not in self._reported:
                self._reported.add(index)
                log.warning("Skipping %s, line %d: %s", self._source.path, prompt.line, error)
            return _unanswered(self._ids_before(prompt)[: self._max_length])
        if self._top_k is None:
            return self._from_text(prompt, answer)
        return self._from_tokens(prompt, answer)

    def _wait(self, future: Future[Answer]) -> Answer:
        while True:
            try:
                return future.result(timeout=_SECONDS_BETWEEN_LOOKS)
            except NotYet:
                if self._interrupts.is_requested:
                    raise StopRequested from None

    def _from_text(self, prompt: Prompt, answer: Answer) -> _AnsweredSample:
        before, said, after = self._parts(prompt, answer)
        ids, spans = encode_text(self._tokenizer, before + said + after)
        is_predicted = [end > len(before) for _, end in spans]
        if prompt.text is not None and answer.ending.may_be_whole:
            ids, is_predicted = [*ids, end_id(self._tokenizer)], [*is_predicted, True]
        cut = slice(0, self._max_length)
        return _AnsweredSample(Sample(ids=ids[cut], is_predicted=is_predicted[cut]), [])

    def _from_tokens(self, prompt: Prompt, answer: Answer) -> _AnsweredSample:
        """The teacher's own tokens, mapped to the student's vocabulary by their bytes."""
        if answer.logprobs is None:
            raise ModelMismatch(
                f"The answer to {self._source.path}, line {prompt.line} has no log-probabilities.",
                hint="Use a teacher that returns them, or leave out teacher.logprobs and set loss.kd to 0.",
            )
        before, _, after = self._parts(prompt, answer)
        prompt_ids = encode_text(self._tokenizer, before).ids
        said_ids = [self._id_of(entry, place, prompt) for place, entry in enumerate(answer.logprobs, 1)]
        has_end = prompt.text is not None and answer.ending.may_be_whole
        last = [end_id(self._tokenizer)] if has_end else encode_text(self._tokenizer, after).ids
        ids = [*prompt_ids, *said_ids, *last][: self._max_length]
        is_predicted = [place >= len(prompt_ids) for place in range(len(ids))]
        # The position before a token predicts it; the end mark is not a token of the teacher.
        entries = [self._entries(entry) for entry in answer.logprobs]
        return _AnsweredSample(
            Sample(ids=ids, is_predicted=is_predicted),
            [(len(prompt_ids) + place - 1, known) for place, known in enumerate(entries)],
        )

    def _id_of(self, entry: dict[str, Any], place: int, prompt: Prompt) -> int:
        assert self._ids_of_bytes is not None
        content = _bytes_of(entry)
        found = self._ids_of_bytes.find(content)
        if found is None:
            raise ModelMismatch(
                f"The teacher's answer to {self._source.path}, line {prompt.line} has as token {place} the bytes "
                f"{content!r}, and the student's tokenizer has no such token.",
                hint="Use a student that shares the teacher's tokenizer, or leave out teacher.logprobs.",
            )
        return found

    def _entries(self, entry: dict[str, Any]) -> list[tuple[int, float]]:
        """Ids and log-probabilities; tokens that the student lacks belong to the rest."""
        assert self._ids_of_bytes is not None
        known: dict[int, float] = {}
        for each in entry.get("top_logprobs") or []:
            found = self._ids_of_bytes.find(_bytes_of(each))
            if found is not None:
                # Two tokens of the teacher can be one of the student.
                known[found] = float(np.logaddexp(known.get(found, -math.inf), each["logprob"]))
        return list(known.items())[: self._top_k]

    def _parts(self, prompt: Prompt, answer: Answer) -> tuple[str, str, str]:
        """The text before the answer, the answer, and what the template adds after it; nothing if it was cut off."""
        if prompt.text is not None:
            return prompt.text, answer.text, ""
        text, (start, end) = self._rendered(prompt, answer.text)
        said = answer.text if text.startswith(answer.text, start) else answer.text.strip()
        if not text.startswith(said, start):
            raise DataError(self._source.path, "the chat template rewrites the answer", line=prompt.line)
        after = text[start + len(said) : end] if answer.ending.may_be_whole else ""
        return text[:start], said, after

    def _ids_before(self, prompt: Prompt) -> list[int]:
        """The tokens before the answer."""
        before = prompt.text
        if before is None:
            text, (start, _) = self._rendered(prompt, "-")
            before = text[:start]
        return encode_text(self._tokenizer, before).ids

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

    def _joined(self, samples: list[_AnsweredSample]) -> Batch:
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
        return batch if self._top_k is None else _with_topk(batch, samples, self._top_k)


@dataclass(frozen=True, slots=True)
class _AnsweredSample:
    sample: Sample
    entries: list[tuple[int, list[tuple[int, float]]]]
    """Positions, each with the teacher's entries for the next token."""


def _unanswered(ids: list[int]) -> _AnsweredSample:
    return _AnsweredSample(Sample(ids=ids, is_predicted=[False] * len(ids)), [])


def _with_topk(batch: Batch, samples: list[_AnsweredSample], top_k: int) -> Batch:
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


def _bytes_of(entry: dict[str, Any]) -> bytes:
    """The bytes of a token as the API returns them; of its text if it returns none."""
    content = entry.get("bytes")
    return bytes(content) if isinstance(content, list) else str(entry["token"]).encode()
