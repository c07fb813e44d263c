"""Training data of plain text, prompts and chats."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answered.cut_answers import is_cut_off, log_cut_off, up_to_cut
from crashproof.distillation.data.lengths import LengthCensus
from crashproof.distillation.data.source import Source, rules_of
from crashproof.distillation.data.token_cache import cached_state
from crashproof.distillation.losses.divergences import IGNORED, next_token_targets
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.chat import render_chat
from crashproof.distillation.text.corpus import builtin_documents, text_hash
from crashproof.distillation.text.tokenizer import (
    encode_document,
    encode_text,
    end_id,
    opening_ids,
    padding_id,
    tokenizer_hash,
)
from crashproof.errors import DataError
from crashproof.pytorch.ranks import Ranks
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.sample import require_learned
from crashproof.tracking.tracker import ProgressTracker

__all__ = [
    "Batch",
    "Sample",
    "TaskData",
    "TokenizedData",
    "TopK",
    "TrainingData",
    "answer_tokens",
    "load_source",
    "num_before_learned",
    "tokenized",
    "tokens_end_to_end",
]

_FORMAT = 3
_FORMATS = 'A line is {"text": …}, {"prompt": …, "teacher_text": …}, {"messages": […]}, or another form of the guide.'


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The largest entries of a teacher's distributions after the temperature; both of shape (batch, length, k).

    Position t holds the distribution of token t + 1, as in `next_token_targets`.
    """

    ids: Tensor
    """int64; -1 where fewer than k entries were kept."""
    logprobs: Tensor
    """float32, in nats."""

    def to(self, device: torch.device) -> TopK:
        """The same on a device."""
        return TopK(ids=_moved(self.ids, device), logprobs=_moved(self.logprobs, device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples side by side, padded on the right; all of shape (batch, length)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    topk: TopK | None = None
    """The teacher's distributions, if they are part of the data."""
    rows: Tensor | Any = None
    """(rows,): flat positions (of batch times length) whose next token a loss counts. Computed once on the CPU: on a
    device, learning their number would force a synchronisation."""

    def __post_init__(self) -> None:
        if self.rows is None:
            rows = (self.targets.flatten() != IGNORED).nonzero().squeeze(-1)
            object.__setattr__(self, "rows", rows)

    @property
    def targets(self) -> Tensor:
        """(batch, length): the token that each position predicts; `IGNORED` where nothing is counted."""
        return next_token_targets(self.labels)

    def num_counted(self) -> int:
        """Tokens that a loss counts: those that some position predicts."""
        return len(self.rows)

    def to(self, device: torch.device) -> Self:
        """The same on a device; a copy to a CUDA device is asynchronous."""
        moved = {each.name: _moved(getattr(self, each.name), device) for each in dataclasses.fields(self)}
        return type(self)(**moved)


class TrainingData(Protocol):
    """What a loop draws its batches from; implementations are subclasses, for the defaults."""

    is_prefetchable: ClassVar[bool] = True
    """Whether a thread may make batches some steps before the loop takes them."""

    def attach(
        self, tracker: ProgressTracker | None, upcoming: Iterator[int], ranks: Ranks
    ) -> AbstractContextManager[object]:
        """Hold what batches need while the loop runs, such as a connection; by default nothing.

        `tracker` is None off the main process; `upcoming` are the samples of all processes in the order in which the
        loop takes them. Every process attaches.
        """
        return nullcontext()

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices; the same each time."""
        ...

    def counts(self, indices: list[int]) -> dict[str, int]:
        """What the losses of these samples are divided by, by name; `tokens` are those that are predicted.

        A process asks for the samples of all processes, so it must not cost what `batch` costs.
        """
        ...

    def digest(self) -> str:
        """SHA-256 of all that batches are made of, in its order: equal data give equal batches."""
        ...


class TaskData(TrainingData, Protocol):
    """Training data that a teacher can be trained on, and asked about."""

    @property
    def tokens(self) -> TokenizedData:
        """All samples as plain tokens, in the same order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The tokens of one sample."""

    ids: list[int]
    is_predicted: list[bool]
    """Which of them a loss counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedData(TaskData):
    """All samples, end to end."""

    input_ids: Tensor
    """(tokens,)"""
    labels: Tensor
    """(tokens,); `IGNORED` outside the answer."""
    starts: Tensor
    """(samples + 1,): where each sample begins, and the end."""
    pad_id: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerFast) -> TokenizedData:
        """The data that `cached_state` keeps."""
        tensors = {name: state[name] for name in ("input_ids", "labels", "starts")}
        return cls(**tensors, pad_id=padding_id(tokenizer))

    @property
    def tokens(self) -> TokenizedData:
        """The data themselves."""
        return self

    def sha256(self) -> str:
        """The digest of all tokens, labels and sample boundaries."""
        digest = hashlib.sha256()
        for tensor in (self.input_ids, self.labels, self.starts):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def digest(self) -> str:
        """The same as `sha256`."""
        return self.sha256()

    def is_predicted(self) -> Tensor:
        """(tokens,) of bool: which tokens a loss counts; the first of a sample is predicted by nothing."""
        counted = self.labels != IGNORED
        counted[self.starts[:-1]] = False
        return counted

    def sums_before(self, values: Tensor) -> Tensor:
        """(samples + 1, …): the sum of per-token `values` before each sample, and in all."""
        sums = torch.zeros(len(values) + 1, *values.shape[1:], dtype=torch.long)
        torch.cumsum(values, dim=0, out=sums[1:])
        return sums[self.starts]

    def part(self, first: int, num: int) -> TokenizedData:
        """`num` samples from `first` on."""
        starts = self.starts[first : first + num + 1]
        tokens = slice(int(starts[0]), int(starts[-1]))
        return TokenizedData(
            input_ids=self.input_ids[tokens],
            labels=self.labels[tokens],
            starts=starts - starts[0],
            pad_id=self.pad_id,
        )

    def samples(self) -> Iterator[Sample]:
        """The samples one by one."""
        is_predicted = self.is_predicted()
        for start, end in pairwise(self.starts.tolist()):
            yield Sample(ids=self.input_ids[start:end].tolist(), is_predicted=is_predicted[start:end].tolist())

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The tokens of these samples that are predicted."""
        spans = [(int(self.starts[index]), int(self.starts[index + 1])) for index in indices]
        return {"tokens": sum(int((self.labels[start + 1 : end] != IGNORED).sum()) for start, end in spans)}

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices."""
        spans = [(int(self.starts[index]), int(self.starts[index + 1])) for index in indices]
        length = max(end - start for start, end in spans)
        shape = (len(indices), length)
        input_ids = torch.full(shape, self.pad_id, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, (start, end) in enumerate(spans):
            input_ids[row, : end - start] = self.input_ids[start:end]
            labels[row, : end - start] = self.labels[start:end]
            mask[row, : end - start] = 1
        return Batch(input_ids=input_ids, attention_mask=mask, labels=labels)


def load_source(config: DataConfig) -> Source:
    """Read the data and check every line.

    Raises:
        DataError: A file is missing or empty, or a line is malformed; names the line.
    """
    if config.path is None:
        documents = builtin_documents()
        samples = [{"text": text, "line": number} for number, text in enumerate(documents, 1)]
        return Source(samples=samples, sha256=text_hash(documents), path=None)
    return Source.read(config.path, check=_require_text, rules=rules_of(config), split=config.split)


def tokenized(source: Source, config: DataConfig, tokenizer: PreTrainedTokenizerFast, cache: Path) -> TokenizedData:
    """Tokenize a source, or load its tokens from `cache`.

    Raises:
        DataError: A sample has no token to learn, or is too long.
    """
    log_cut_off(source.samples)
    lengths = (config.max_length, config.on_too_long)
    parts = (_FORMAT, source.sha256, lengths, tokenizer_hash(tokenizer), tokenizer.chat_template)
    state = cached_state(cache, "tokens", parts, lambda: _tokenize(source, config, tokenizer))
    LengthCensus.of(state["lengths"]).report(source.where)
    return TokenizedData.from_state(state, tokenizer)


def answer_tokens(
    tokenizer: PreTrainedTokenizerFast, text: str, spans: list[tuple[int, int]], *, has_end: bool
) -> tuple[list[int], list[int]]:
    """Token ids of a text, and labels for the characters in `spans` and, with `has_end`, for the end of text."""
    encoded = (encode_document if has_end else encode_text)(tokenizer, text)
    is_learned = encoded.overlapping(spans)
    labels = [token if learned else IGNORED for token, learned in zip(encoded.ids, is_learned, strict=True)]
    end = [end_id(tokenizer)] if has_end else []
    return encoded.ids + end, labels + end


def num_before_learned(labels: Sequence[int]) -> int:
    """The tokens of a sample before the first that is learned; all of them if none is."""
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


def tokens_end_to_end(sequences: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """The state of `TokenizedData` from the ids and labels of each sample."""
    return {
        "input_ids": torch.tensor([token for ids, _ in sequences for token in ids]),
        "labels": torch.tensor([label for _, labels in sequences for label in labels]),
        "starts": torch.tensor(list(accumulate((len(ids) for ids, _ in sequences), initial=0))),
    }


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        # Only from pinned memory is a copy queued.
        return (value.pin_memory() if device.type == "cuda" and not value.is_cuda else value).to(
            device, non_blocking=True
        )
    return value.to(device) if hasattr(value, "to") else value


def _require_text(sample: dict[str, Any]) -> None:
    """Raises `InvalidSample` or `LeftOut` if a sample has nothing to learn."""
    if "messages" in sample:
        answers = [place for place, message in enumerate(sample["messages"]) if message["role"] == "assistant"]
        if not answers:
            raise InvalidSample('no message has the role "assistant"', _FORMATS)
        require_learned(sample, answers)
    elif "prompt" in sample or "answer" in sample:
        if not isinstance(sample.get("prompt"), str) or not isinstance(sample.get("answer"), str):
            raise InvalidSample('"prompt" and "teacher_text" must both be present and be text', _FORMATS)
        if not sample["answer"].strip():
            raise LeftOut("the answer is empty", "Only its end would be learned.")
    elif not isinstance(sample.get("text"), str):
        raise InvalidSample('it needs "text", or "prompt" with "teacher_text", or "messages"', _FORMATS)


def _tokenize(source: Source, config: DataConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    census = LengthCensus(max_length=config.max_length, on_too_long=config.on_too_long)
    sequences = [sequence for sample in source.samples for sequence in _sequences(sample, source, census, tokenizer)]
    census.require_usable(source.where)
    if not sequences:
        raise DataError(source.path or Path("the built-in text"), "no sample has a token to learn")
    return tokens_end_to_end(sequences) | {"lengths": census.state()}


def _sequences(
    sample: dict[str, Any], source: Source, census: LengthCensus, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels of the sequences of a sample, without those in which nothing is predicted."""
    if "messages" not in sample and "prompt" not in sample:
        yield from _text_sequences(sample["text"], census, tokenizer)
        return
    text, spans = _answer_spans(sample, source, tokenizer)
    has_end = "messages" not in sample and not is_cut_off(sample)
    ids, labels = answer_tokens(tokenizer, text, spans, has_end=has_end)
    if all(label == IGNORED for label in labels[1:]):
        raise source.place(sample).error("none of its tokens is learned", hint="Leave it out.")
    kept = census.tokens_kept(source.place(sample), len(ids), num_before=num_before_learned(labels))
    if kept:
        yield ids[:kept], labels[:kept]


def _text_sequences(
    text: str, census: LengthCensus, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], list[int]]]:
    """The parts of a text; each begins as the tokenizer begins a text, for models need that (Gemma)."""
    opening, ids = opening_ids(tokenizer), encode_document(tokenizer, text).ids
    ids = [*(ids[len(opening) :] if ids[: len(opening)] == opening else ids), end_id(tokenizer)]
    census.count_text(len(opening) + len(ids))
    room = max(1, census.max_length - len(opening))
    for start in range(0, len(ids), room):
        part = ids[start : start + room]
        # The first token of a later part does not follow from the opening.
        labels = [IGNORED, *part[1:]] if opening and start else part
        if len(opening) + len(part) > 1:
            yield [*opening, *part], [*opening, *labels]


def _answer_spans(
    sample: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerFast
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a sample, and the characters in it that are to be learned."""
    if "messages" not in sample:
        text = sample["prompt"] + sample["answer"]
        return text, [(len(sample["prompt"]), len(text))]
    messages, unlearned = sample["messages"], sample.get("unlearned", ())
    try:
        text, turns = render_chat(messages, tokenizer, tools=sample.get("tools"))
        if is_cut_off(sample) and len(messages) - 1 not in unlearned:
            text, turns = up_to_cut(text, turns, messages[-1]["content"])
    except ValueError as error:
        raise source.place(sample).error(str(error)) from error
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return text, [turn for place, turn in zip(places, turns, strict=True) if place not in unlearned]
