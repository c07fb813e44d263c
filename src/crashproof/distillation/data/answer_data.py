"""Training data of answers: lines, checked, and their tokens."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.disk.files import REAL_DISK
from crashproof.distillation.data.text_data import Batch, Source, TaskData, TokenizedData
from crashproof.distillation.data.tool_conversations import read_conversation
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.chat import BUILTIN_TEMPLATE, Tools, render_chat
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.errors import CheckpointDamaged, DataError
from crashproof.json_lines import read_objects
from crashproof.pytorch.checkpoint_file import load_checkpoint, save_checkpoint

__all__ = [
    "AnswerBatch",
    "AnswerData",
    "AnswerDataConfig",
    "AnswerLine",
    "AnswerSource",
    "answer_data",
    "read_answers",
]

_FORMAT = 1
_LINES = (
    'A line is {"prompt": …, "answer": …} or {"messages": […]} that ends with the assistant\'s answer; beside it may '
    'stand "quality", a number from 0 to 1, or "rejected", a worse answer.'
)
_CALLS = (
    'A call is {"type": "function", "function": {"name": …, "arguments": "{…}"}}, its arguments JSON in a string.'
)


class AnswerDataConfig(DataConfig):
    """`data` of `distill_answer_generation`; without `path` a task is generated."""

    max_length: int = Field(default=256, ge=2)
    """Tokens of one sample at most; a longer one is an error, since an answer that is cut has no end to learn."""
    samples: int = Field(default=2000, ge=1)
    """Lines of the generated task."""
    task_seed: int = 0
    """Of the generated task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLine:
    """One line, checked."""

    prompt: str | None
    """None where there are messages."""
    messages: list[dict[str, Any]]
    """What comes before the answer, as chat templates take it."""
    tools: Tools | None
    answer: str
    rejected: str | None
    quality: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSource(Source):
    """Lines with answers, as they stand in the file; `line` reads one."""

    @property
    def where(self) -> Path:
        """What errors name."""
        return self.path or Path("the generated task")

    def line(self, sample: dict[str, Any]) -> AnswerLine:
        """Check one sample and make it ready for a chat template.

        Raises:
            DataError: tells the line and what is wrong with it.
        """
        if sample.get("tools") is not None and isinstance(sample.get("messages"), list):
            conversation = read_conversation(sample, self.where)
            sample = sample | {"messages": conversation.messages}
        try:
            return _line(sample)
        except _Unusable as error:
            raise DataError(self.where, error.reason, line=sample["line"], hint=error.hint) from error

    def documents(self) -> list[str]:
        """All text, for training a tokenizer."""
        return [_text(sample) for sample in self.samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBatch(Batch):
    """Sequences side by side, padded on the right: the answers, and below them the rejected ones."""

    sequence_of_row: Tensor
    """(rows,) of int64: the sequence that each of `rows` lies in."""
    num_tokens: Tensor
    """(sequences,) of float32: tokens that are predicted in each."""
    is_learned: Tensor
    """(sequences,) of float32: 1 for an answer that has no quality of its own, else 0."""
    quality: Tensor
    """(sequences,) of float32; 0 where a line says none."""
    chosen: Tensor
    """(pairs,) of int64: the sequence that is better."""
    rejected: Tensor
    """(pairs,) of int64: the one that is worse."""

    def mean_logprobs(self, cross_entropies: Tensor) -> Tensor:
        """The log-probability per token of each sequence, in nats, (sequences,); of what each row costs, (rows,)."""
        sums = torch.zeros_like(self.num_tokens, dtype=cross_entropies.dtype)
        return sums.index_add(0, self.sequence_of_row, -cross_entropies) / self.num_tokens


class AnswerData(TaskData):
    """All samples of a source."""

    def __init__(self, state: dict[str, Any], *, pad_id: int, has_rejected: bool) -> None:
        """`state` is what `answer_data` keeps; without `has_rejected` batches hold the answers alone."""
        self._state = state
        self._has_rejected = has_rejected
        self._sequences = TokenizedData(
            input_ids=state["input_ids"], labels=state["labels"], starts=state["starts"], pad_id=pad_id
        )
        self._quality: Tensor = state["quality"]
        self._rejected_at: list[int] = state["rejected_at"].tolist()
        self._tokens = self._sequences.part(0, len(self))
        self._counts = self._counted()

    def __len__(self) -> int:
        return len(self._rejected_at)

    @property
    def tokens(self) -> TokenizedData:
        """All questions with their answers as plain tokens, without the rejected ones."""
        return self._tokens

    def pairs(self) -> list[int]:
        """The samples that have a rejected answer."""
        return [index for index, rejected in enumerate(self._rejected_at) if rejected >= 0]

    def with_rejected(self) -> AnswerData:
        """The same, with the rejected answers in its batches."""
        return AnswerData(self._state, pad_id=self._sequences.pad_id, has_rejected=True)

    def reference_tokens(self) -> TokenizedData:
        """As `tokens`, but of answers with a quality below 1 nothing is predicted."""
        lengths = self._tokens.starts[1:] - self._tokens.starts[:-1]
        is_worse = (self._quality < 1).repeat_interleave(lengths)
        return replace(self._tokens, labels=self._tokens.labels.masked_fill(is_worse, IGNORED))

    def counts(self, indices: list[int]) -> dict[str, int]:
        """Of these samples: tokens that are predicted, those of answers without a quality, and judged answers."""
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

    def _counted(self) -> Tensor:
        """(samples, 3): what `counts` adds up."""
        sums = torch.cat([torch.zeros(1, dtype=torch.long), self._tokens.is_predicted().long().cumsum(dim=0)])
        num_tokens = sums[self._tokens.starts[1:]] - sums[self._tokens.starts[:-1]]
        has_quality = ~self._quality.isnan()
        is_judged = (torch.tensor(self._rejected_at) >= 0) | has_quality
        return torch.stack([num_tokens, num_tokens * ~has_quality, is_judged.long()], dim=1)


def read_answers(path: Path) -> AnswerSource:
    """Read a file and check every line of it.

    Raises:
        DataError: tells the file, the line and what is wrong with it.
    """
    samples = [sample | {"line": number} for number, sample in read_objects(path)]
    if not samples:
        raise DataError(path, "it holds no samples", hint="Put one JSON object on each line.")
    source = AnswerSource(samples=samples, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), path=path)
    for sample in samples:
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
    """The tokens of a source; computed once, then read from `cache`.

    A prompt and its answer are read as they stand, with the end of text behind them; messages go through the chat
    template, and of them the last turn is learned. `has_rejected` puts the rejected answers into the batches.

    Raises:
        DataError: a line is too long, or the template cannot write it so that the answer is found.
    """
    template = tokenizer.chat_template or BUILTIN_TEMPLATE
    parts = (_FORMAT, source.sha256, config.max_length, tokenizer_hash(tokenizer), template)
    path = cache / f"answers-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.pt"
    try:
        state = load_checkpoint(path)
    except CheckpointDamaged:
        # Not there yet, or damaged: it can always be computed again.
        REAL_DISK.make_folders(cache)
        save_checkpoint(path, _tokenized(source, config.max_length, tokenizer))
        state = load_checkpoint(path)
    return AnswerData(state, pad_id=int(tokenizer.pad_token_id or 0), has_rejected=has_rejected)


class _Unusable(Exception):
    def __init__(self, reason: str, hint: str = _LINES) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def _line(sample: dict[str, Any]) -> AnswerLine:
    if "messages" in sample and ("prompt" in sample or "answer" in sample):
        raise _Unusable('it has "messages", and "prompt" or "answer" beside them')
    prompt: Any = None
    answer: Any
    if "messages" in sample:
        before, answer = _conversation(sample["messages"])
    else:
        prompt, answer, before = sample.get("prompt"), sample.get("answer"), []
        if not isinstance(prompt, str) or not prompt:
            raise _Unusable('"prompt" must be there and be text')
        if not isinstance(answer, str) or not answer.strip():
            raise _Unusable('"answer" must be there and be text that is not empty')
    quality, rejected = sample.get("quality"), sample.get("rejected")
    if quality is not None and rejected is not None:
        raise _Unusable('it has both "quality" and "rejected"', "Say one of them: how good it is, or what is worse.")
    return AnswerLine(
        prompt=prompt,
        messages=before,
        tools=sample.get("tools"),
        answer=answer,
        rejected=_rejected(rejected, answer),
        quality=_quality(quality),
    )


def _quality(quality: Any) -> float | None:
    if quality is None:
        return None
    if isinstance(quality, bool) or not isinstance(quality, int | float) or not 0 <= quality <= 1:
        raise _Unusable(f'"quality" must be a number from 0 to 1, and is {json.dumps(quality)}')
    return float(quality)


def _rejected(rejected: Any, answer: str) -> str | None:
    if rejected is None:
        return None
    if not isinstance(rejected, str) or not rejected.strip():
        raise _Unusable('"rejected" must be text that is not empty')
    if rejected.strip() == answer.strip():
        raise _Unusable('"rejected" is the answer itself', 'Leave "rejected" out where nothing worse is known.')
    return rejected


def _conversation(messages: Any) -> tuple[list[dict[str, Any]], str]:
    """What comes before the answer, as chat templates take it, and the answer."""
    if not isinstance(messages, list) or len(messages) < 2:
        raise _Unusable('"messages" must be a list of a question and an answer at least')
    ready = [_message(message, place) for place, message in enumerate(messages)]
    last = ready[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        raise _Unusable("the last message must be the assistant's answer in words")
    if not last["content"].strip():
        raise _Unusable("the assistant's answer is empty")
    return ready[:-1], last["content"]


def _message(message: Any, place: int) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _Unusable(f'message {place + 1} needs a "role"')
    content, calls = message.get("content"), message.get("tool_calls")
    if not calls:
        if not isinstance(content, str):
            raise _Unusable(f'the "content" of message {place + 1} ({message["role"]}) must be text')
        return {key: value for key, value in message.items() if key != "tool_calls"}
    if message["role"] != "assistant" or not isinstance(calls, list):
        raise _Unusable(f'message {place + 1} has "tool_calls", and is not the assistant\'s', _CALLS)
    return message | {"content": content, "tool_calls": [_call(call, place) for call in calls]}


def _call(call: Any, place: int) -> dict[str, Any]:
    """A call with its arguments as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Unusable(f"a tool call in message {place + 1} names no function", _CALLS)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise _Unusable(f"the arguments of {function['name']} are no JSON ({error})", _CALLS) from error
    if not isinstance(arguments, dict):
        raise _Unusable(f"the arguments of {function['name']} are no JSON object", _CALLS)
    made: dict[str, Any] = call | {"function": function | {"arguments": arguments}}
    return made


def _text(sample: dict[str, Any]) -> str:
    parts = [json.dumps(tool, ensure_ascii=False) for tool in sample.get("tools") or ()]
    if "messages" in sample:
        for message in sample["messages"]:
            parts.append(f"<|{message['role']}|>\n{message.get('content') or ''}")
            parts += [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
    else:
        parts.append(f"{sample['prompt']}{sample['answer']}")
    return "\n".join([*parts, sample.get("rejected") or ""])


_Sequence = tuple[list[int], list[int]]
"""Token ids, and labels."""


def _tokenized(source: AnswerSource, max_length: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    answers: list[_Sequence] = []
    rejected: list[_Sequence] = []
    rejected_at: list[int] = []
    quality: list[float] = []
    for sample in source.samples:
        line = source.line(sample)
        try:
            answers.append(_sequence(line, line.answer, max_length, tokenizer))
            if line.rejected is not None:
                rejected.append(_sequence(line, line.rejected, max_length, tokenizer))
        except _Unusable as error:
            raise DataError(source.where, error.reason, line=sample["line"], hint=error.hint) from error
        except ValueError as error:
            raise DataError(source.where, str(error), line=sample["line"]) from error
        rejected_at.append(-1 if line.rejected is None else len(source.samples) + len(rejected) - 1)
        quality.append(math.nan if line.quality is None else line.quality)
    sequences = answers + rejected
    return {
        "input_ids": torch.tensor([token for ids, _ in sequences for token in ids]),
        "labels": torch.tensor([label for _, labels in sequences for label in labels]),
        "starts": torch.tensor(list(accumulate((len(ids) for ids, _ in sequences), initial=0))),
        "rejected_at": torch.tensor(rejected_at),
        "quality": torch.tensor(quality, dtype=torch.float32),
    }


def _sequence(line: AnswerLine, answer: str, max_length: int, tokenizer: PreTrainedTokenizerFast) -> _Sequence:
    text, (begin, end), ends_here = _rendered(line, answer, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    labels = [
        token if first < end and last > begin else IGNORED
        for token, (first, last) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    if ends_here:
        assert isinstance(tokenizer.eos_token_id, int)
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    if len(ids) > max_length:
        num_before = labels.index(next(label for label in labels if label != IGNORED))
        what = "it has" if answer == line.answer else "with the rejected answer it has"
        room = ", which leaves no room for the answer" if num_before >= max_length else ""
        raise _Unusable(
            f"{what} {len(ids):,} tokens, {num_before:,} of them before the answer, and data.max_length is "
            f"{max_length:,}{room}",
            "Raise data.max_length, or leave the line out: an answer that is cut has no end to learn.",
        )
    return ids, labels


def _rendered(line: AnswerLine, answer: str, tokenizer: PreTrainedTokenizerFast) -> tuple[str, tuple[int, int], bool]:
    """The whole text, the characters of the answer, and whether the end of text comes behind it."""
    if line.prompt is not None:
        text = line.prompt + answer
        return text, (len(line.prompt), len(text)), True
    messages = [*line.messages, {"role": "assistant", "content": answer}]
    text, turns = render_chat(messages, tokenizer, tools=line.tools)
    return text, turns[-1], False
