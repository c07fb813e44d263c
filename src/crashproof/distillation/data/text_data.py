"""Training data: from text or JSONL to tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.disk.files import REAL_DISK
from crashproof.distillation.losses.divergences import IGNORED, next_token_targets
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.chat import render_chat
from crashproof.distillation.text.corpus import builtin_documents, text_hash
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.errors import CheckpointDamaged, DataError
from crashproof.pytorch.checkpoint_file import load_checkpoint, save_checkpoint
from crashproof.tracking.tracker import ProgressTracker

__all__ = [
    "Batch",
    "Sample",
    "Source",
    "TaskData",
    "TokenizedData",
    "TopK",
    "TrainingData",
    "load_source",
    "tokenized",
]

_FORMAT = 1


_FORMATS = 'A line is {"text": …}, {"prompt": …, "teacher_text": …} or {"messages": […]}.'


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The largest entries of a teacher's distributions, softened already; both of shape (batch, length, k).

    Position t holds what the teacher says of token t + 1, as in `losses.next_token_targets`.
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
    """What the teacher says, where the data bring it along."""
    rows: Tensor | Any = None
    """(rows,): flat positions (of batch times length) whose next token a loss counts. Found on the CPU, once: a
    device would have to be waited for to learn how many there are."""

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
        """The same on a device; a copy to a CUDA device is queued, and nobody waits for it."""
        moved = {each.name: _moved(getattr(self, each.name), device) for each in dataclasses.fields(self)}
        return type(self)(**moved)


class TrainingData(Protocol):
    """What a loop draws its batches from; implementations are subclasses, for the defaults."""

    is_prefetchable: ClassVar[bool] = True
    """Whether a thread may make batches some steps before the loop takes them."""

    def attach(self, tracker: ProgressTracker | None, upcoming: Iterator[int]) -> AbstractContextManager[object]:
        """Hold what batches need while the loop runs, such as a connection; by default nothing.

        `tracker` is None off the main process; `upcoming` are the samples in the order in which the loop takes them.
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


class TaskData(TrainingData, Protocol):
    """Training data that a teacher can be trained on, and asked about."""

    @property
    def tokens(self) -> TokenizedData:
        """All samples as plain tokens, in the same order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was read, before any tokenizer."""

    samples: list[dict[str, Any]]
    """Each with the line that it came from as `line`."""
    sha256: str
    path: Path | None

    def documents(self) -> list[str]:
        """All text, for training a tokenizer."""
        return [_text(sample) for sample in self.samples]

    def split(self, held_out: float) -> tuple[Self, Self]:
        """What is trained on, and a share of the lines, spread evenly, that is kept from it."""
        num_held_out = round(len(self.samples) * held_out)
        places = {int((place + 0.5) * len(self.samples) / num_held_out) for place in range(num_held_out)}
        return tuple(  # type: ignore[return-value]
            dataclasses.replace(
                self,
                samples=[sample for place, sample in enumerate(self.samples) if (place in places) is is_held_out],
                sha256=hashlib.sha256(f"{self.sha256} {held_out} {is_held_out}".encode()).hexdigest(),
            )
            for is_held_out in (False, True)
        )


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

    @property
    def tokens(self) -> TokenizedData:
        """These samples are nothing but tokens."""
        return self

    def sha256(self) -> str:
        """The digest of every token, of what is learned of it, and of where each sample begins."""
        digest = hashlib.sha256()
        for tensor in (self.input_ids, self.labels, self.starts):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def is_predicted(self) -> Tensor:
        """(tokens,) of bool: which tokens a loss counts; the first of a sample is predicted by nothing."""
        counted = self.labels != IGNORED
        counted[self.starts[:-1]] = False
        return counted

    def part(self, first: int, num: int) -> TokenizedData:
        """So many samples from this one on."""
        starts = self.starts[first : first + num + 1]
        tokens = slice(int(starts[0]), int(starts[-1]))
        return TokenizedData(
            input_ids=self.input_ids[tokens],
            labels=self.labels[tokens],
            starts=starts - starts[0],
            pad_id=self.pad_id,
        )

    def samples(self) -> Iterator[Sample]:
        """Each sample by itself."""
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
    """Read the data and take its digest.

    Raises:
        DataError: the file is missing or empty, or a line is malformed; tells which.
    """
    if config.path is None:
        documents = builtin_documents()
        samples = [{"text": text, "line": number} for number, text in enumerate(documents, 1)]
        return Source(samples=samples, sha256=text_hash(documents), path=None)
    try:
        content = config.path.read_bytes()
    except OSError as error:
        raise DataError(config.path, f"it cannot be read ({error.strerror})", hint="Check data.path.") from error
    samples = list(_lines(config.path, content))
    if not samples:
        raise DataError(config.path, "it holds no samples", hint="Put one JSON object on each line.")
    return Source(samples=samples, sha256=hashlib.sha256(content).hexdigest(), path=config.path)


def tokenized(source: Source, config: DataConfig, tokenizer: PreTrainedTokenizerFast, cache: Path) -> TokenizedData:
    """The tokens of a source; computed once, then read from `cache`.

    Raises:
        DataError: a sample has no token to learn from.
    """
    parts = (_FORMAT, source.sha256, config.max_length, tokenizer_hash(tokenizer), tokenizer.chat_template)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    path = cache / f"tokens-{key[:16]}.pt"
    try:
        state = load_checkpoint(path)
    except CheckpointDamaged:
        # Not there yet, or damaged: it can always be computed again.
        REAL_DISK.make_folders(cache)
        save_checkpoint(path, _tokenize(source, config.max_length, tokenizer))
        state = load_checkpoint(path)
    return TokenizedData(
        input_ids=state["input_ids"],
        labels=state["labels"],
        starts=state["starts"],
        pad_id=int(tokenizer.pad_token_id or 0),
    )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        # Only from pinned memory is a copy queued.
        return (value.pin_memory() if device.type == "cuda" and not value.is_cuda else value).to(
            device, non_blocking=True
        )
    return value.to(device) if hasattr(value, "to") else value


def _lines(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(path, f"this is no JSON ({error})", line=number) from error
        problem = _problem_with(sample)
        if problem:
            raise DataError(path, problem, line=number, hint=_FORMATS)
        yield sample | {"line": number}


def _problem_with(sample: Any) -> str | None:
    if not isinstance(sample, dict):
        return "a sample must be a JSON object"
    if "messages" in sample:
        messages = sample["messages"]
        if not isinstance(messages, list) or not messages:
            return '"messages" must be a list that is not empty'
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
                return 'each message needs a "role" and a "content" that is text'
        has_answer = any(message["role"] == "assistant" for message in messages)
        return None if has_answer else 'no message has the role "assistant"'
    if "prompt" in sample or "teacher_text" in sample:
        if isinstance(sample.get("prompt"), str) and isinstance(sample.get("teacher_text"), str):
            return None
        return '"prompt" and "teacher_text" must both be there and be text'
    if isinstance(sample.get("text"), str):
        return None
    return 'it needs "text", or "prompt" with "teacher_text", or "messages"'


def _text(sample: dict[str, Any]) -> str:
    """Everything in a sample that is text."""
    if isinstance(sample.get("text"), str):
        return str(sample["text"])
    if isinstance(sample.get("messages"), list):
        return "\n".join(str(message["content"]) for message in sample["messages"])
    return f"{sample['prompt']}{sample['teacher_text']}"


def _tokenize(source: Source, max_length: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    ids: list[int] = []
    labels: list[int] = []
    starts = [0]
    for sample in source.samples:
        for sample_ids, sample_labels in _pieces(sample, source, max_length, tokenizer):
            ids += sample_ids
            labels += sample_labels
            starts.append(len(ids))
    if len(starts) == 1:
        where = source.path or Path("the built-in text")
        raise DataError(where, "no sample has a token to learn from")
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "starts": torch.tensor(starts)}


def _pieces(
    sample: dict[str, Any], source: Source, max_length: int, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels of what a sample becomes; only pieces in which something is predicted."""
    end_id = tokenizer.eos_token_id
    if "text" in sample and "messages" not in sample:
        ids = [*_encode(tokenizer, sample["text"])["input_ids"], end_id]
        for start in range(0, len(ids), max_length):
            piece = ids[start : start + max_length]
            if len(piece) > 1:
                yield piece, piece
        return
    text, spans = _answer_spans(sample, source, tokenizer)
    encoded = _encode(tokenizer, text)
    ids = encoded["input_ids"]
    labels = [
        token if any(start < span_end and end > span_start for span_start, span_end in spans) else IGNORED
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    if "messages" not in sample:
        ids, labels = [*ids, end_id], [*labels, end_id]
    ids, labels = ids[:max_length], labels[:max_length]
    if all(label == IGNORED for label in labels[1:]):
        where = source.path or Path("data")
        raise DataError(
            where,
            f"the answer begins behind the {max_length} tokens that are read",
            line=sample["line"],
            hint="Raise data.max_length.",
        )
    yield ids, labels


def _answer_spans(
    sample: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerFast
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a sample, and the characters in it that are to be learned."""
    if "messages" in sample:
        try:
            return render_chat(sample["messages"], tokenizer)
        except ValueError as error:
            raise DataError(source.path or Path("data"), str(error), line=sample["line"]) from error
    prompt = sample["prompt"]
    text = prompt + sample["teacher_text"]
    return text, [(len(prompt), len(text))]


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> Any:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
