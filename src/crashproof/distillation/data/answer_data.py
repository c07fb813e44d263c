"""Training data of answers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.cut_answers import is_cut_off, log_cut_off, up_to_cut
from crashproof.distillation.data.messages import InvalidSample, Message, check_message, parse_arguments
from crashproof.distillation.data.text_data import (
    Batch,
    Source,
    TaskData,
    TokenizedData,
    answer_tokens,
    tokens_end_to_end,
)
from crashproof.distillation.data.token_cache import cached_state
from crashproof.distillation.data.tool_conversations import read_conversation
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.chat import BUILTIN_TEMPLATE, Tools, render_chat
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.errors import DataError

__all__ = [
    "AnswerBatch",
    "AnswerData",
    "AnswerDataConfig",
    "AnswerLine",
    "AnswerSource",
    "answer_data",
    "read_answers",
]

_FORMAT = 2
_LINES = (
    'A line is {"prompt": …, "answer": …} or {"messages": […]} that ends with the assistant\'s answer; optional are '
    '"quality", a number from 0 to 1, or "rejected", a worse answer.'
)


class AnswerDataConfig(DataConfig):
    """`data` of `distill_answer_generation`; without `path` a task is generated."""

    max_length: int = Field(default=256, ge=2)
    """Maximum tokens per sample; a longer one is an error, since a truncated answer has no end to learn."""
    samples: int = Field(default=2000, ge=1)
    """Number of lines of the generated task."""
    task_seed: int = 0
    """Seed of the generated task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLine:
    """One line, checked."""

    prompt: str | None
    """None if the line has messages."""
    messages: list[Message]
    """The messages before the answer."""
    tools: Tools | None
    answer: str
    rejected: str | None
    quality: float | None
    is_cut: bool
    """Whether the answer, by its `finish_reason`, is not complete: it has no end to learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSource(Source):
    """Lines with answers, as they are in the file; `line` checks one."""

    def line(self, sample: dict[str, Any]) -> AnswerLine:
        """Check one sample and prepare it for a chat template.

        Raises:
            DataError: Names the line and the problem.
        """
        if sample.get("tools") is not None and isinstance(sample.get("messages"), list):
            sample = sample | {"messages": read_conversation(sample, self.where).messages}
        try:
            return _line(sample)
        except InvalidSample as error:
            raise error.at(self.where, sample["line"]) from error

    def documents(self) -> list[str]:
        """All text, for training a tokenizer."""
        return [_text(sample) for sample in self.samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBatch(Batch):
    """Sequences side by side, padded on the right: the answers, then the rejected ones."""

    sequence_of_row: Tensor
    """(rows,) of int64: the sequence of each of `rows`."""
    num_tokens: Tensor
    """(sequences,) of float32: the predicted tokens of each."""
    is_learned: Tensor
    """(sequences,) of float32: 1 for an answer without a quality, else 0."""
    quality: Tensor
    """(sequences,) of float32; 0 for lines without one."""
    chosen: Tensor
    """(pairs,) of int64: the better sequence."""
    rejected: Tensor
    """(pairs,) of int64: the worse one."""

    def mean_logprobs(self, cross_entropies: Tensor) -> Tensor:
        """The log-probability per token of each sequence in nats, (sequences,), from the cross-entropies, (rows,)."""
        sums = torch.zeros_like(self.num_tokens, dtype=cross_entropies.dtype)
        return sums.index_add(0, self.sequence_of_row, -cross_entropies) / self.num_tokens


class AnswerData(TaskData):
    """All samples of a source."""

    def __init__(
        self, sequences: TokenizedData, quality: Tensor, rejected_at: list[int], *, has_rejected: bool
    ) -> None:
        """Arrange the data.

        Args:
            sequences: All answers, then all rejected ones.
            quality: (samples,) of float32; NaN for an answer without a quality.
            rejected_at: For each sample the index of its rejected answer in `sequences`, or -1.
            has_rejected: Put the rejected answers into the batches.
        """
        self._sequences = sequences
        self._quality = quality
        self._rejected_at = rejected_at
        self._has_rejected = has_rejected
        self._tokens = sequences.part(0, len(self))
        self._counts = self._count_tokens()

    def __len__(self) -> int:
        return len(self._rejected_at)

    @property
    def tokens(self) -> TokenizedData:
        """All questions with their answers as plain tokens, without the rejected answers."""
        return self._tokens

    def pairs(self) -> list[int]:
        """The samples that have a rejected answer."""
        return [index for index, rejected in enumerate(self._rejected_at) if rejected >= 0]

    def with_rejected(self) -> AnswerData:
        """The same data with the rejected answers in the batches."""
        return AnswerData(self._sequences, self._quality, self._rejected_at, has_rejected=True)

    def reference_tokens(self) -> TokenizedData:
        """Like `tokens`, but answers with a quality below 1 have no labels."""
        is_worse = (self._quality < 1).repeat_interleave(self._tokens.starts.diff())
        return replace(self._tokens, labels=self._tokens.labels.masked_fill(is_worse, IGNORED))

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The predicted tokens of these samples, those of answers without a quality, and the judged answers."""
        sums = self._counts[indices].sum(dim=0).tolist()
        return dict(zip(("tokens", "learned", "judged"), sums, strict=True))

    def batch(self, indices: list[int]) -> AnswerBatch:
        """The samples at these indices."""
        chosen = [
            place for place, index in enumerate(indices) if self._has_rejected and self._rejected_at[index] >= 0
        ]
        plain = self._sequences.batch([*indices, *(self._rejected_at[indices[place]] for place in chosen)])
        num_sequences, length = plain.input_ids.shape
        sequence_of_row = plain.rows.div(length, rounding_mode="floor")
        quality = torch.zeros(num_sequences)
        quality[: len(indices)] = self._quality[indices]
        is_learned = quality.isnan().to(torch.float32)
        return AnswerBatch(
            input_ids=plain.input_ids,
            attention_mask=plain.attention_mask,
            labels=plain.labels,
            rows=plain.rows,
            sequence_of_row=sequence_of_row,
            num_tokens=torch.bincount(sequence_of_row, minlength=num_sequences).to(torch.float32),
            is_learned=is_learned,
            quality=quality.nan_to_num(nan=0.0),
            chosen=torch.tensor(chosen, dtype=torch.long),
            rejected=torch.arange(len(indices), num_sequences),
        )

    def _count_tokens(self) -> Tensor:
        """(samples, 3): the columns of `counts`."""
        num_tokens = self._tokens.sums_before(self._tokens.is_predicted()).diff()
        has_quality = ~self._quality.isnan()
        is_judged = (torch.tensor(self._rejected_at) >= 0) | has_quality
        return torch.stack([num_tokens, num_tokens * ~has_quality, is_judged.long()], dim=1)


def read_answers(path: Path) -> AnswerSource:
    """Read a file and check every line.

    Raises:
        DataError: Names the file, the line and the problem.
    """
    source = AnswerSource.read(path)
    for sample in source.samples:
        source.line(sample)
    return source


def answer_data(
    source: AnswerSource,
    config: AnswerDataConfig,
    tokenizer: PreTrainedTokenizerFast,
    cache: Path,
    *,
    has_rejected: bool,
) -> AnswerData:
    """Tokenize a source, or load its tokens from `cache`.

    A prompt and its answer are tokenized as they are, followed by the end of text; messages go through the chat
    template, and the last turn is learned. With `has_rejected` the batches contain the rejected answers.

    Raises:
        DataError: A line is too long, or the answer cannot be found in the text that the template renders.
    """
    log_cut_off(source.samples)
    template = tokenizer.chat_template or BUILTIN_TEMPLATE
    parts = (_FORMAT, source.sha256, config.max_length, tokenizer_hash(tokenizer), template)
    state = cached_state(cache, "answers", parts, lambda: _tokenize(source, config.max_length, tokenizer))
    sequences = TokenizedData.from_state(state, tokenizer)
    return AnswerData(sequences, state["quality"], state["rejected_at"].tolist(), has_rejected=has_rejected)


def _line(sample: dict[str, Any]) -> AnswerLine:
    if "messages" in sample and ("prompt" in sample or "answer" in sample):
        raise InvalidSample('it has "prompt" or "answer" beside "messages"', _LINES)
    messages: list[Message] = []
    if "messages" in sample:
        prompt = None
        messages, answer = _split_answer(sample["messages"])
    else:
        prompt, answer = _text_field(sample, "prompt"), _text_field(sample, "answer")
    quality, rejected = sample.get("quality"), sample.get("rejected")
    if quality is not None and rejected is not None:
        raise InvalidSample('it has both "quality" and "rejected"', "Keep one of them.")
    return AnswerLine(
        prompt=prompt,
        messages=messages,
        tools=sample.get("tools"),
        answer=answer,
        rejected=_rejected(rejected, answer),
        quality=_quality(quality),
        is_cut=is_cut_off(sample),
    )


def _text_field(sample: dict[str, Any], name: str) -> str:
    text = sample.get(name)
    # White space is a prompt, but no answer.
    if not isinstance(text, str) or not (text if name == "prompt" else text.strip()):
        raise InvalidSample(f'"{name}" must be non-empty text', _LINES)
    return text


def _quality(quality: object) -> float | None:
    if quality is None:
        return None
    if isinstance(quality, bool) or not isinstance(quality, int | float) or not 0 <= quality <= 1:
        raise InvalidSample(f'"quality" must be a number from 0 to 1, and is {json.dumps(quality)}', _LINES)
    return float(quality)


def _rejected(rejected: object, answer: str) -> str | None:
    if rejected is None:
        return None
    if not isinstance(rejected, str) or not rejected.strip():
        raise InvalidSample('"rejected" must be non-empty text', _LINES)
    if rejected.strip() == answer.strip():
        raise InvalidSample(
            '"rejected" is the same as the answer', 'Leave out "rejected" if there is no worse answer.'
        )
    return rejected


def _split_answer(messages: object) -> tuple[list[Message], str]:
    """The messages before the answer, and the answer."""
    if not isinstance(messages, list) or len(messages) < 2:
        raise InvalidSample('"messages" must be a list with at least a question and an answer', _LINES)
    checked = [check_message(each, number, read_arguments=_read_arguments) for number, each in enumerate(messages, 1)]
    last = checked[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        raise InvalidSample("the last message must be a text answer of the assistant", _LINES)
    if not last["content"].strip():
        raise InvalidSample("the assistant's answer is empty", _LINES)
    return checked[:-1], last["content"]


def _read_arguments(name: str, arguments: object) -> Message:
    return arguments if isinstance(arguments, dict) else parse_arguments(name, arguments)


def _text(sample: dict[str, Any]) -> str:
    parts = [json.dumps(tool, ensure_ascii=False) for tool in sample.get("tools") or ()]
    if "messages" in sample:
        for message in sample["messages"]:
            parts.append(f"<|{message['role']}|>\n{message.get('content') or ''}")
            parts += [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
    else:
        parts.append(f"{sample['prompt']}{sample['answer']}")
    return "\n".join([*parts, sample.get("rejected") or ""])


def _tokenize(source: AnswerSource, max_length: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    answers: list[tuple[list[int], list[int]]] = []
    rejected: list[tuple[list[int], list[int]]] = []
    rejected_at: list[int] = []
    quality: list[float] = []
    for sample in source.samples:
        line = source.line(sample)
        try:
            answers.append(_sequence(line, line.answer, max_length, tokenizer))
            if line.rejected is not None:
                rejected.append(_sequence(line, line.rejected, max_length, tokenizer))
        except InvalidSample as error:
            raise error.at(source.where, sample["line"]) from error
        except ValueError as error:
            raise DataError(source.where, str(error), line=sample["line"]) from error
        rejected_at.append(-1 if line.rejected is None else len(source.samples) + len(rejected) - 1)
        quality.append(math.nan if line.quality is None else line.quality)
    return {
        **tokens_end_to_end(answers + rejected),
        "rejected_at": torch.tensor(rejected_at),
        "quality": torch.tensor(quality, dtype=torch.float32),
    }


def _sequence(
    line: AnswerLine, answer: str, max_length: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a line with this answer."""
    text, span = _rendered(line, answer, tokenizer)
    is_cut = line.is_cut and answer == line.answer
    if is_cut:
        text, (span,) = up_to_cut(text, [span], answer)
    ids, labels = answer_tokens(tokenizer, text, [span], has_end=line.prompt is not None and not is_cut)
    if len(ids) > max_length:
        num_before = next(place for place, label in enumerate(labels) if label != IGNORED)
        what = "it has" if answer == line.answer else "with the rejected answer it has"
        room = ", which leaves no room for the answer" if num_before >= max_length else ""
        raise InvalidSample(
            f"{what} {len(ids):,} tokens, {num_before:,} of them before the answer, and data.max_length is "
            f"{max_length:,}{room}",
            "Raise data.max_length, or leave out the line: a truncated answer has no end to learn.",
        )
    return ids, labels


def _rendered(line: AnswerLine, answer: str, tokenizer: PreTrainedTokenizerFast) -> tuple[str, tuple[int, int]]:
    """The whole text, and the characters of the answer."""
    if line.prompt is not None:
        text = line.prompt + answer
        return text, (len(line.prompt), len(text))
    messages = [*line.messages, {"role": "assistant", "content": answer}]
    text, turns = render_chat(messages, tokenizer, tools=line.tools)
    return text, turns[-1]
