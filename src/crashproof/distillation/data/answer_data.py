"""Training data of answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.data_files.record import Place
from crashproof.distillation.data.answered.cut_answers import is_cut_off, log_cut_off, up_to_cut
from crashproof.distillation.data.lengths import LengthCensus
from crashproof.distillation.data.source import Source, rules_of
from crashproof.distillation.data.text_data import (
    Batch,
    TaskData,
    TokenizedData,
    answer_tokens,
    num_before_learned,
    tokens_end_to_end,
)
from crashproof.distillation.data.token_cache import cached_state
from crashproof.distillation.data.tool_conversations import check_conversation
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.settings.recipes.answer_generation import AnswerDataConfig
from crashproof.distillation.text.chat import BUILTIN_TEMPLATE, render_chat
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.pytorch.tensor_digest import sha256_of
from crashproof.samples.messages import Message, read_messages
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import SampleRules
from crashproof.samples.sample import require_learned
from crashproof.samples.tools import Tools

__all__ = [
    "AnswerBatch",
    "AnswerData",
    "AnswerLine",
    "AnswerSource",
    "answer_data",
    "read_answers",
]

_FORMAT = 3
_Sequence = tuple[list[int], list[int]]
"""Token ids and labels."""
_AS_READ = SampleRules(learns_reasoning=True, learns_refusals=True)
"""For what was read before: nothing more is taken away."""
_LINES = (
    'A line is {"prompt": …, "answer": …} or {"messages": […]} that ends with the assistant\'s answer; optional are '
    '"quality", a number from 0 to 1, or "rejected", a worse answer.'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLine:
    """One line, checked."""

    prompt: str | None
    """None if the line has messages."""
    messages: list[Message]
    """The messages before the answer."""
    tools: Tools | None
    answer: str
    """Empty if the assistant only calls tools."""
    reply: Message
    """The answer as a message of the assistant."""
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
        try:
            return _line(sample)
        except InvalidSample as error:
            raise error.at(self.place(sample)) from error

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
        self,
        sequences: TokenizedData,
        quality: Tensor,
        rejected_at: list[int],
        *,
        has_rejected: bool,
        whole: Sequence[int] = (),
    ) -> None:
        """Arrange the data.

        Args:
            sequences: All answers, then all rejected ones.
            quality: (samples,) of float32; NaN for an answer without a quality.
            rejected_at: For each sample the index of its rejected answer in `sequences`, or -1.
            has_rejected: Put the rejected answers into the batches.
            whole: See `whole`.
        """
        self.whole = whole
        """The places in the source of the lines that are neither cut nor left out."""
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
        rejected_at = self._rejected_at
        return AnswerData(self._sequences, self._quality, rejected_at, has_rejected=True, whole=self.whole)

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

    def digest(self) -> str:
        """See `TrainingData.digest`."""
        return sha256_of(self._sequences.sha256(), self._quality, f"{self._rejected_at} {self._has_rejected}")

    def _count_tokens(self) -> Tensor:
        """(samples, 3): the columns of `counts`."""
        num_tokens = self._tokens.sums_before(self._tokens.is_predicted()).diff()
        has_quality = ~self._quality.isnan()
        is_judged = (torch.tensor(self._rejected_at) >= 0) | has_quality
        return torch.stack([num_tokens, num_tokens * ~has_quality, is_judged.long()], dim=1)


def read_answers(paths: Path | list[Path], config: AnswerDataConfig | None = None) -> AnswerSource:
    """Read files and check every line.

    Raises:
        DataError: Names the file, the line and the problem.
    """
    config = config or AnswerDataConfig()
    rules = rules_of(config, compares=True)
    return AnswerSource.read(paths, check=_require_answer, rules=rules, split=config.split)


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
    lengths = (config.max_length, config.on_too_long)
    parts = (_FORMAT, source.sha256, lengths, tokenizer_hash(tokenizer), template)
    state = cached_state(cache, "answers", parts, lambda: _tokenize(source, config, tokenizer))
    LengthCensus.of(state["lengths"]).report(source.where)
    sequences = TokenizedData.from_state(state, tokenizer)
    rejected_at, whole = state["rejected_at"].tolist(), state["whole"]
    return AnswerData(sequences, state["quality"], rejected_at, has_rejected=has_rejected, whole=whole)


def _require_answer(sample: dict[str, Any]) -> None:
    """Raises `InvalidSample` or `LeftOut` if a sample has no answer to learn."""
    line = _line(sample)
    if line.prompt is None:
        require_learned(sample, [len(line.messages)])


def _line(sample: dict[str, Any]) -> AnswerLine:
    if "messages" in sample and ("prompt" in sample or "answer" in sample):
        raise InvalidSample('it has "prompt" or "answer" beside "messages"', _LINES)
    messages: list[Message] = []
    if "messages" in sample:
        prompt = None
        messages, reply = _split_answer(sample)
    else:
        prompt = _text_field(sample, "prompt")
        reply = {"role": "assistant", "content": _text_field(sample, "answer")}
    quality, rejected = sample.get("quality"), sample.get("rejected")
    if quality is not None and rejected is not None:
        raise InvalidSample('it has both "quality" and "rejected"', "Keep one of them.")
    answer = reply["content"] or ""
    return AnswerLine(
        prompt=prompt,
        messages=messages,
        tools=sample.get("tools"),
        answer=answer,
        reply=reply,
        rejected=_rejected(rejected, answer),
        quality=_quality(quality),
        is_cut=is_cut_off(sample),
    )


def _text_field(sample: dict[str, Any], name: str) -> str:
    text = sample.get(name)
    if not isinstance(text, str) or (not text and name == "prompt"):
        raise InvalidSample(f'"{name}" must be non-empty text', _LINES)
    # White space is a prompt, but no answer.
    if not text.strip() and name == "answer":
        raise LeftOut("the answer is empty", _LINES)
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


def _split_answer(sample: dict[str, Any]) -> tuple[list[Message], Message]:
    """The messages before the answer, and the answer."""
    messages = sample["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise InvalidSample('"messages" must be a list with at least a question and an answer', _LINES)
    read = check_conversation(sample).messages if sample.get("tools") else read_messages(messages, _AS_READ).messages
    last = read[-1]
    if last["role"] != "assistant":
        raise InvalidSample("the last message must be an answer of the assistant", _LINES)
    if not last.get("tool_calls") and not last["content"].strip():
        raise LeftOut("the assistant's answer is empty", _LINES)
    return read[:-1], last


def _text(sample: dict[str, Any]) -> str:
    parts = [json.dumps(tool, ensure_ascii=False) for tool in sample.get("tools") or ()]
    if "messages" in sample:
        for message in sample["messages"]:
            parts.append(f"<|{message['role']}|>\n{message.get('content') or ''}")
            parts += [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
    else:
        parts.append(f"{sample['prompt']}{sample['answer']}")
    return "\n".join([*parts, sample.get("rejected") or ""])


def _tokenize(source: AnswerSource, config: AnswerDataConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    census = LengthCensus(max_length=config.max_length, on_too_long=config.on_too_long)
    answers: list[_Sequence] = []
    rejected: list[_Sequence] = []
    pairs: list[int] = []
    quality: list[float] = []
    whole: list[int] = []
    for place, sample in enumerate(source.samples):
        line = source.line(sample)
        sequences = _sequences_of(line, source.place(sample), tokenizer)
        kept = _fitted(sequences, source.place(sample), census)
        if not kept:
            continue
        answers.append(kept[0])
        pairs.append(len(rejected) if len(kept) > 1 else -1)
        rejected += kept[1:]
        quality.append(math.nan if line.quality is None else line.quality)
        if kept == sequences:
            whole.append(place)
    census.require_usable(source.where)
    return {
        **tokens_end_to_end(answers + rejected),
        "rejected_at": torch.tensor([-1 if pair < 0 else len(answers) + pair for pair in pairs]),
        "quality": torch.tensor(quality, dtype=torch.float32),
        "lengths": census.state(),
        "whole": whole,
    }


def _sequences_of(line: AnswerLine, place: Place, tokenizer: PreTrainedTokenizerFast) -> list[_Sequence]:
    """Token ids and labels of a line with its answer and, if it has one, with the rejected answer."""
    replies = [line.reply]
    if line.rejected is not None:
        replies.append({"role": "assistant", "content": line.rejected})
    try:
        return [_sequence(line, reply, tokenizer) for reply in replies]
    except InvalidSample as error:
        raise error.at(place) from error
    except ValueError as error:
        raise place.error(str(error)) from error


def _fitted(sequences: list[_Sequence], place: Place, census: LengthCensus) -> list[_Sequence]:
    """What of a line is kept; nothing if it is left out."""
    num_tokens = max(len(ids) for ids, _ in sequences)
    before = [num_before_learned(labels) for _, labels in sequences]
    # Where the answers of a pair part behind the cut, nothing is left to compare.
    fewest = _num_common(*(ids for ids, _ in sequences)) + 1 if len(sequences) > 1 else 0
    num_kept = census.tokens_kept(place, num_tokens, num_before=max(before), fewest=fewest)
    return [(ids[:num_kept], labels[:num_kept]) for ids, labels in sequences] if num_kept else []


def _num_common(one: list[int], other: list[int]) -> int:
    """The tokens at the beginning that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _sequence(line: AnswerLine, reply: Message, tokenizer: PreTrainedTokenizerFast) -> _Sequence:
    """Token ids and labels of a line with this answer."""
    text, span = _rendered(line, reply, tokenizer)
    is_cut = line.is_cut and reply is line.reply
    if is_cut:
        text, (span,) = up_to_cut(text, [span], line.answer)
    return answer_tokens(tokenizer, text, [span], has_end=line.prompt is not None and not is_cut)


def _rendered(line: AnswerLine, reply: Message, tokenizer: PreTrainedTokenizerFast) -> tuple[str, tuple[int, int]]:
    """The whole text, and the characters of the answer."""
    if line.prompt is not None:
        text = f"{line.prompt}{reply['content']}"
        return text, (len(line.prompt), len(text))
    text, turns = render_chat([*line.messages, reply], tokenizer, tools=line.tools)
    return text, turns[-1]
