"""Training data from a paid teacher."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answered.cut_answers import up_to_cut
from crashproof.distillation.data.answered.prompts import PromptSource
from crashproof.distillation.data.answered.room import AnswerRoom, most_answered
from crashproof.distillation.data.answered.samples import AnsweredSample, answered_sample, unanswered, with_topk
from crashproof.distillation.data.lengths import OnTooLong
from crashproof.distillation.data.text_data import Batch, Sample, TokenizedData, TrainingData, tokens_end_to_end
from crashproof.distillation.text.aligned_answer import FitCounter, LogprobsMisfit, TokenAligner
from crashproof.distillation.text.chat import render_chat, split_at_answer
from crashproof.distillation.text.tokenizer import encode_document, encode_text, end_id, padding_id
from crashproof.errors import AnswerUnusable, DataError, RankLost
from crashproof.pytorch.coordination.from_main import SECONDS_BETWEEN_LOOKS, FromMain, is_raised_by_all
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import Ranks, SingleRank
from crashproof.pytorch.tensor_digest import sha256_of
from crashproof.rules.requests import TeacherRequest
from crashproof.samples.messages import Message, read_messages
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import SampleRules
from crashproof.samples.sample import require_learned
from crashproof.samples.thoughts import with_thoughts
from crashproof.teacher import Answer, Teacher
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["ApiData"]

log = logging.getLogger("crashproof")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One process's part of a forward pass."""

    indices: list[int]
    samples: list[AnsweredSample]
    all_indices: list[int]
    """The samples of all processes."""
    num_counted: int
    """Tokens that are predicted, over all processes."""


class ApiData(TrainingData):
    """One sample for each prompt, requested ahead of the training loop.

    The same answers give the same batches, whenever they arrived. Of several processes the main one asks, for all of
    them: it alone writes the run, so an answer is paid for once and kept before any process learns from it.
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
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._top_k = top_k
        self._interrupts = interrupts
        self._share_among(SingleRank())
        self._rules = rules or SampleRules()
        self._aligner = TokenAligner(tokenizer, top_k=top_k) if top_k is not None else None
        self._teacher: Teacher | None = None
        self._ahead_samples = ahead_samples
        self._open_teacher = open_teacher
        self._coming: Iterator[int] = iter(())
        self._asked: deque[tuple[int, Future[Answer]]] = deque()
        self._reported: set[int] = set()
        self._num_counted: dict[tuple[int, ...], int] = {}
        self._room = AnswerRoom(source.path, max_length=max_length, on_too_long=on_too_long)
        self._source = source
        self._source = self._with_room(max_tokens)
        self._fits = FitCounter(num_answers=len(self))

    def __len__(self) -> int:
        return len(self._source.prompts)

    @contextmanager
    def attach(self, tracker: ProgressTracker | None, upcoming: Iterator[int], ranks: Ranks) -> Iterator[None]:
        """Open the teacher on the main process, and ask it ahead until the loop is done.

        Raises:
            ConfigError, UnknownPrice, StoreUnavailable: The teacher cannot be used.
            RankFailed: Likewise, on the other processes.
        """
        self._share_among(ranks)
        with ExitStack() as stack:
            self._from_main.receive(partial(self._open, stack, tracker, upcoming), "opening the teacher")
            try:
                yield
            except BaseException as error:
                if is_raised_by_all(error):
                    # That it happened is known; what matters is the error itself.
                    with suppress(RankLost):
                        self._drain()
                raise
            else:
                self._drain()
            finally:
                self._fits.report()
                self._room.report(num_prompts=len(self))

    def connect(self, teacher: Teacher, coming: Iterator[int]) -> None:
        """Request answers from this teacher; `coming` are the samples of all processes in the loop's order."""
        self._teacher = teacher
        self._coming = coming
        # Where training goes back, the order may be another one; answers that came are in the store.
        self._asked.clear()
        self._num_counted.clear()
        self._ask_ahead()

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices; waits for the answers to those of all processes.

        Raises:
            TeacherError: A request failed.
            ModelMismatch: The log-probabilities of no answer fit the student's tokens; names the first reason.
            RankFailed: One of these, on the other processes.
            StopRequested: A stop was requested during the wait; on all processes.
            RankLost: Another process died, or did not respond within the limit.
        """
        parts = self._deal(len(indices))
        part = self._from_main.receive(lambda: next(parts), "waiting for the teacher")
        assert indices == part.indices, "the loop takes another order than `connect` was given"
        self._num_counted[tuple(part.all_indices)] = part.num_counted
        return self._joined(part.samples)

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The predicted tokens of the last forward pass over these samples; they are unknown before `batch`."""
        return {"tokens": self._num_counted.pop(tuple(indices))}

    def _share_among(self, ranks: Ranks) -> None:
        self._num_ranks = ranks.num_ranks
        self._from_main = FromMain(ranks, self._interrupts)

    def _open(self, stack: ExitStack, tracker: ProgressTracker | None, upcoming: Iterator[int]) -> list[None]:
        assert tracker is not None, "the main process has one"
        self.connect(stack.enter_context(self._open_teacher(tracker)), upcoming)
        return [None] * self._num_ranks

    def _drain(self) -> None:
        """Have the requests under way answered, as they are paid for.

        All processes wait for that: torchrun ends the others soon after the first.
        """
        self._from_main.wait_for(self._close_teacher, "waiting for the teacher's last answers")

    def _close_teacher(self) -> None:
        assert self._teacher is not None, "the main process has one"
        self._teacher.close(waits=True)

    def _deal(self, size: int) -> Iterator[list[_Part] | None]:
        """The parts of all processes, of this size each; None at each look before their answers are there."""
        asked = list(islice(self._in_order(), size * self._num_ranks))
        self._ask_ahead()
        if not all(answer.done() for _, answer in asked):
            self.num_waits += 1
        samples: list[AnsweredSample] = []
        for index, answer in asked:
            while not wait([answer], timeout=SECONDS_BETWEEN_LOOKS).done:
                yield None
            samples.append(self._room.fit(self._source.place(index), self._sample(index, answer)))
        yield _parts([index for index, _ in asked], samples, size)

    def _in_order(self) -> Iterator[tuple[int, Future[Answer]]]:
        """The samples in the order of the loop, each with its answer; what was not asked ahead is asked now."""
        while self._asked:
            yield self._asked.popleft()
        for index in self._coming:
            yield index, self._ask(index)

    def digest(self) -> str:
        """That of the prompts; answers come while the loop runs."""
        return sha256_of(self._source.sha256, repr([prompt.messages for prompt in self._source.prompts]))

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

    def _sample(self, index: int, asked: Future[Answer]) -> AnsweredSample:
        try:
            answer = asked.result()
            if self._aligner is not None and answer.text and not answer.message.get("tool_calls"):
                return self._from_tokens(index, answer, self._aligner)
            return self._from_text(index, self._reply(answer), may_be_whole=answer.ending.may_be_whole)
        except LogprobsMisfit as misfit:
            self._fits.add_misfit(self._source.place(index), misfit)
        except (AnswerUnusable, InvalidSample, LeftOut) as error:
            if index not in self._reported:
                self._reported.add(index)
                log.warning("Skipping %s (%s skipped so far)", self._error(index, str(error)), len(self._reported))
        return unanswered(self._ids_before(index)[: self._max_length])

    def _reply(self, answer: Answer) -> Message:
        """The answer as the student learns it.

        Raises:
            InvalidSample, LeftOut: It is malformed, or not to be learned.
        """
        chat = read_messages([answer.message | {"role": "assistant"}], self._rules)
        require_learned({"unlearned": chat.unlearned, "refusals": chat.refusals}, [0])
        return chat.messages[0]

    def _error(self, index: int, reason: str) -> DataError:
        return self._source.place(index).error(reason)

    def _from_text(self, index: int, reply: Message, *, may_be_whole: bool) -> AnsweredSample:
        prompt = self._source.prompts[index].text
        if prompt is not None:
            said = with_thoughts(reply.get("reasoning_content", ""), reply["content"])
            ids, spans = encode_document(self._tokenizer, prompt + said)
            is_predicted = [end > len(prompt) for _, end in spans]
            if may_be_whole:
                ids, is_predicted = [*ids, end_id(self._tokenizer)], [*is_predicted, True]
            return AnsweredSample(Sample(ids=ids, is_predicted=is_predicted), [])
        text, (start, end) = self._rendered(index, reply)
        if not may_be_whole:
            end = _end_of_cut(text, (start, end), reply)
        ids, spans = encode_text(self._tokenizer, text[:end])
        return AnsweredSample(Sample(ids=ids, is_predicted=[stop > start for _, stop in spans]), [])

    def _from_tokens(self, index: int, answer: Answer, aligner: TokenAligner) -> AnsweredSample:
        """The teacher's own tokens, mapped to the student's vocabulary by their bytes."""
        before, said, after = self._parts(index, answer)
        is_document = self._source.prompts[index].text is not None
        last = [end_id(self._tokenizer)] if is_document else encode_text(self._tokenizer, after).ids
        if not answer.ending.may_be_whole:
            last = []
        aligned = aligner.align(answer.logprobs, said, end_id=last[0] if last else None)
        self._fits.add_fit(self._source.place(index))
        before = before.removesuffix(" ") if aligned.takes_space else before
        prompt_ids = (encode_document if is_document else encode_text)(self._tokenizer, before).ids
        return answered_sample(prompt_ids, aligned, last)

    def _parts(self, index: int, answer: Answer) -> tuple[str, str, str]:
        """The text before the answer, the answer, and what the template adds after it."""
        prompt = self._source.prompts[index]
        if prompt.text is not None:
            return prompt.text, answer.text, ""
        messages = [*self._source.chats[index], {"role": "assistant", "content": answer.text}]
        try:
            return split_at_answer(messages, self._tokenizer, tools=prompt.tools)
        except ValueError as error:
            raise self._error(index, str(error)) from error

    def _ids_before(self, index: int) -> list[int]:
        """The tokens before the answer."""
        before = self._source.prompts[index].text
        if before is not None:
            return encode_document(self._tokenizer, before).ids
        text, (start, _) = self._rendered(index, {"role": "assistant", "content": "-"})
        return encode_text(self._tokenizer, text[:start]).ids

    def _rendered(self, index: int, reply: Message) -> tuple[str, tuple[int, int]]:
        """A prompt with an answer through the chat template, and the characters of the answer."""
        messages, tools = [*self._source.chats[index], reply], self._source.prompts[index].tools
        try:
            text, spans = render_chat(messages, self._tokenizer, tools=tools)
        except ValueError as error:
            raise self._error(index, str(error)) from error
        return text, spans[-1]

    def _with_room(self, max_tokens: int | None) -> PromptSource:
        """The prompts that leave room for an answer."""
        kept = self._room.choose(
            [self._source.place(index) for index in range(len(self))],
            [len(self._ids_before(index)) for index in range(len(self))],
            [most_answered(prompt.parameters) or max_tokens for prompt in self._source.prompts],
        )
        if max_tokens is None:
            self._room.warn_of_unlimited_answers()
        return self._source.only(kept)

    def _joined(self, samples: list[AnsweredSample]) -> Batch:
        state = tokens_end_to_end([(each.sample.ids, each.labels()) for each in samples])
        tokens = TokenizedData(**state, pad_id=padding_id(self._tokenizer))
        batch = tokens.batch(list(range(len(samples))))
        return batch if self._top_k is None else with_topk(batch, samples, self._top_k)


def _parts(indices: list[int], samples: list[AnsweredSample], size: int) -> list[_Part]:
    """The parts of the processes in the order of their ranks, of this size each."""
    num_counted = sum(each.num_counted() for each in samples)
    return [
        _Part(
            indices=indices[start : start + size],
            samples=samples[start : start + size],
            all_indices=indices,
            num_counted=num_counted,
        )
        for start in range(0, len(indices), size)
    ]


def _end_of_cut(text: str, span: tuple[int, int], reply: Message) -> int:
    try:
        return up_to_cut(text, [span], reply["content"])[1][0][1]
    except ValueError as error:
        raise LeftOut(str(error), "Its end would be learned.") from error
