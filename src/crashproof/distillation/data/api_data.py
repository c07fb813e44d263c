"""Training data from a paid teacher."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from crashproof.data_files.reader import digest_files
from crashproof.data_files.record import Place
from crashproof.data_files.selection import select_files
from crashproof.distillation.data.lengths import LengthCensus, OnTooLong
from crashproof.distillation.data.text_data import Batch, Sample, TokenizedData, TopK, TrainingData
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.text.chat import render_chat
from crashproof.distillation.text.token_bytes import BytesToIds, token_bytes
from crashproof.distillation.text.tokenizer import encode_text, end_id, padding_id
from crashproof.errors import AnswerUnusable, DataError, ModelMismatch
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.rules.requests import TeacherRequest
from crashproof.samples.messages import Message, read_messages
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import SampleRules
from crashproof.samples.sample import require_learned
from crashproof.samples.tally import Tally
from crashproof.samples.thoughts import with_thoughts
from crashproof.teacher import Answer, Teacher
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer, read_prompts
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["ApiData", "PromptSource", "load_prompts", "most_answered"]

log = logging.getLogger("crashproof")

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """The prompts of a training run, before any answer."""

    path: Path
    prompts: list[Prompt]
    """As the teacher is asked."""
    chats: list[list[Message]]
    """Their messages as the student reads them."""
    sha256: str

    def documents(self) -> list[str]:
        """All text, for training a tokenizer."""
        return [str(message.get("content") or "") for chat in self.chats for message in chat]

    def only(self, places: Sequence[int]) -> PromptSource:
        """The same with these prompts alone, by their places."""
        chats = [self.chats[place] for place in places]
        return replace(self, prompts=[self.prompts[place] for place in places], chats=chats)


def load_prompts(path: Path, rules: SampleRules | None = None, *, split: str | None = None) -> PromptSource:
    """Read the prompts of a training run; those that a student cannot read are left out, and never asked.

    Raises:
        DataError: The file is missing or empty, or a line is malformed; names the line.
    """
    rules = rules or SampleRules()
    tally = Tally(str(path))
    prompts, chats = [], []
    for prompt in read_prompts(path, split=split):
        assert prompt.place is not None, "prompts are read from files"
        try:
            chat = read_messages(prompt.messages, rules)
        except LeftOut as problem:
            tally.leave_out(problem, prompt.place)
            continue
        except InvalidSample as error:
            raise error.at(prompt.place) from error
        prompts.append(prompt)
        chats.append(chat.messages)
        tally.forms["prompts"] += 1
        tally.notes.update(chat.notes)
    if not prompts:
        raise tally.nothing_left() or DataError(path, "it contains no prompts")
    tally.report()
    return PromptSource(path=path, prompts=prompts, chats=chats, sha256=digest_files(select_files(path, split=split)))


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
        rules: SampleRules | None = None,
        on_too_long: str = OnTooLong.ERROR,
        max_tokens: int | None = None,
    ) -> None:
        """Prepare the prompts; requests begin with `attach`.

        `max_tokens` are those of an answer, as far as its prompt does not state others. An answer that turns out too
        long is paid already: it is cut where `on_too_long` says so, and else left out.

        Raises:
            DataError: Prompts leave no room for an answer, or less than it may take; counts them.
        """
        self.num_waits = 0
        """Batches that had to wait for an answer."""
        self._source = source
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._on_too_long = on_too_long
        self._too_long: set[int] = set()
        """Samples whose answers turned out too long."""
        self._top_k = top_k
        self._interrupts = interrupts
        self._rules = rules or SampleRules()
        self._ids_of_bytes = BytesToIds(token_bytes(tokenizer)) if top_k is not None else None
        self._teacher: Teacher | None = None
        self._ahead_samples = ahead_samples
        self._open_teacher = open_teacher
        self._coming: Iterator[int] = iter(())
        self._asked: deque[tuple[int, Future[Answer]]] = deque()
        self._reported: set[int] = set()
        self._num_counted: dict[tuple[int, ...], int] = {}
        self._source = self._with_room(max_tokens)

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
                self._report_too_long()

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
        batch = self._joined([self._fitted(index, self._sample(index, answer)) for index, answer in asked])
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
        takes_refusals = self._rules.learns_refusals
        return self._teacher.begin(
            self._request(prompt),
            check=lambda answer: problem_with_answer(prompt, answer.message, takes_refusals=takes_refusals),
        )

    def _request(self, prompt: Prompt) -> TeacherRequest:
        assert self._teacher is not None
        parameters = {name: value for name, value in prompt.parameters.items() if name != "model"}
        return self._teacher.request(prompt.messages, tools=prompt.tools, **parameters)

    def _sample(self, index: int, asked: Future[Answer]) -> _AnsweredSample:
        try:
            answer = self._wait(asked)
            if self._top_k is not None and answer.text and not answer.message.get("tool_calls"):
                return self._from_tokens(index, answer)
            return self._from_text(index, self._reply(answer))
        except (AnswerUnusable, InvalidSample, LeftOut) as error:
            if index not in self._reported:
                self._reported.add(index)
                log.warning("Skipping %s (%s skipped so far)", self._error(index, str(error)), len(self._reported))
            return _unanswered(self._ids_before(index)[: self._max_length])

    def _reply(self, answer: Answer) -> Message:
        """The answer as the student learns it.

        Raises:
            InvalidSample, LeftOut: It is malformed, or not to be learned.
        """
        chat = read_messages([answer.message | {"role": "assistant"}], self._rules)
        require_learned({"unlearned": chat.unlearned, "refusals": chat.refusals}, [0])
        return chat.messages[0]

    def _place(self, index: int) -> Place:
        place = self._source.prompts[index].place
        assert place is not None, "prompts are read from files"
        return place

    def _error(self, index: int, reason: str, *, hint: str = "") -> DataError:
        return self._place(index).error(reason, hint=hint)

    def _wait(self, future: Future[Answer]) -> Answer:
        while True:
            try:
                return future.result(timeout=_SECONDS_BETWEEN_LOOKS)
            except NotYet:
                if self._interrupts.is_requested:
                    raise StopRequested from None

    def _from_text(self, index: int, reply: Message) -> _AnsweredSample:
        prompt = self._source.prompts[index].text
        if prompt is not None:
            start = len(prompt)
            text = prompt + with_thoughts(reply.get("reasoning_content", ""), reply["content"])
        else:
            text, (start, end) = self._rendered(index, reply)
            text = text[:end]
        ids, spans = encode_text(self._tokenizer, text)
        is_predicted = [end > start for _, end in spans]
        if prompt is not None:
            ids, is_predicted = [*ids, end_id(self._tokenizer)], [*is_predicted, True]
        return _AnsweredSample(Sample(ids=ids, is_predicted=is_predicted), [])

    def _from_tokens(self, index: int, answer: Answer) -> _AnsweredSample:
        """The teacher's own tokens, mapped to the student's vocabulary by their bytes."""
        prompt = self._source.prompts[index]
        if answer.logprobs is None:
            raise ModelMismatch(
                f"The answer to {self._source.path}, line {prompt.line} has no log-probabilities.",
                hint="Use a teacher that returns them, or leave out teacher.logprobs and set loss.kd to 0.",
            )
        before, _, after = self._parts(index, answer)
        prompt_ids = encode_text(self._tokenizer, before).ids
        said_ids = [self._id_of(entry, place, prompt) for place, entry in enumerate(answer.logprobs, 1)]
        last = [end_id(self._tokenizer)] if prompt.text is not None else encode_text(self._tokenizer, after).ids
        ids = [*prompt_ids, *said_ids, *last]
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

    def _parts(self, index: int, answer: Answer) -> tuple[str, str, str]:
        """The text before the answer, the answer, and what the template adds after it."""
        prompt = self._source.prompts[index]
        if prompt.text is not None:
            return prompt.text, answer.text, ""
        text, (start, end) = self._rendered(index, {"role": "assistant", "content": answer.text})
        said = answer.text if text.startswith(answer.text, start) else answer.text.strip()
        if not text.startswith(said, start):
            raise self._error(index, "the chat template rewrites the answer")
        return text[:start], said, text[start + len(said) : end]

    def _ids_before(self, index: int) -> list[int]:
        """The tokens before the answer."""
        before = self._source.prompts[index].text
        if before is None:
            text, (start, _) = self._rendered(index, {"role": "assistant", "content": "-"})
            before = text[:start]
        return encode_text(self._tokenizer, before).ids

    def _rendered(self, index: int, reply: Message) -> tuple[str, tuple[int, int]]:
        """A prompt with an answer through the chat template, and the characters of the answer."""
        messages, tools = [*self._source.chats[index], reply], self._source.prompts[index].tools
        try:
            text, spans = render_chat(messages, self._tokenizer, tools=tools)
        except ValueError as error:
            raise self._error(index, str(error)) from error
        return text, spans[-1]

    def _fitted(self, index: int, answered: _AnsweredSample) -> _AnsweredSample:
        """A sample as long as it may be; the end of an answer is its last token, and so never follows a cut."""
        sample = answered.sample
        if len(sample.ids) <= self._max_length:
            return answered
        if not self._too_long:
            log.warning(
                "%s Such answers are %s.",
                self._error(
                    index,
                    f"with its answer it has {len(sample.ids):,} tokens, and data.max_length is {self._max_length:,}",
                ),
                self._fate,
            )
        self._too_long.add(index)
        cut = Sample(ids=sample.ids[: self._max_length], is_predicted=sample.is_predicted[: self._max_length])
        return replace(answered, sample=cut) if self._on_too_long == OnTooLong.TRUNCATE else _unanswered(cut.ids)

    @property
    def _fate(self) -> str:
        return "cut" if self._on_too_long == OnTooLong.TRUNCATE else "left out"

    def _report_too_long(self) -> None:
        if self._too_long:
            log.warning(
                "%s: the answers to %s of %s prompts had too many tokens for data.max_length (%s) and were %s.",
                self._source.path,
                f"{len(self._too_long):,}",
                f"{len(self):,}",
                f"{self._max_length:,}",
                self._fate,
            )

    def _with_room(self, max_tokens: int | None) -> PromptSource:
        """The prompts that leave room for an answer; what they may need is said before any request is paid for."""
        census = LengthCensus(max_length=self._max_length, on_too_long=self._on_too_long)
        kept, needed = [], []
        for index, prompt in enumerate(self._source.prompts):
            num_before = len(self._ids_before(index))
            if census.tokens_kept(self._place(index), num_before + 1, num_before=num_before):
                kept.append(index)
                needed.append(num_before + (most_answered(prompt.parameters) or max_tokens or 0) + 1)
        census.require_usable(self._source.path)
        census.report(self._source.path)
        self._compare_with_room([num for num in needed if num > self._max_length])
        if max_tokens is None:
            log.warning(
                "teacher.max_tokens is not set: answers that are longer than data.max_length (%s) allows are %s.",
                f"{self._max_length:,}",
                self._fate,
            )
        return self._source.only(kept)

    def _compare_with_room(self, needed: list[int]) -> None:
        """Refuse, or report, prompts whose answers may need more tokens than there is room for."""
        if not needed:
            return
        many = f"{len(needed):,} of {len(self._source.prompts):,} prompts may need more tokens with their answers"
        problem = f"{many} (up to {max(needed):,}, by max_tokens) than data.max_length, which is {self._max_length:,}"
        if self._on_too_long == OnTooLong.ERROR:
            raise DataError(
                self._source.path,
                problem,
                hint=f"Set data.max_length to {max(needed):,} if the student accepts that, lower teacher.max_tokens, "
                "or set data.on_too_long to skip or truncate.",
            )
        log.warning("%s: %s. Answers that turn out too long are %s.", self._source.path, problem, self._fate)

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


def most_answered(parameters: Mapping[str, object]) -> int | None:
    """The most tokens that the parameters of a request allow for its answer."""
    stated = (parameters.get(name) for name in ("max_completion_tokens", "max_tokens"))
    return next((each for each in stated if isinstance(each, int)), None)


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
