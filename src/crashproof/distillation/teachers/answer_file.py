"""A file of log-probabilities as teacher."""

from __future__ import annotations

from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerFast

from crashproof.data_files.reader import read_records
from crashproof.data_files.selection import select_files
from crashproof.distillation.data.answered.cut_answers import is_cut_off, log_cut_off
from crashproof.distillation.data.answered.samples import AnsweredSample, answered_sample, with_topk
from crashproof.distillation.data.lengths import LengthCensus, OnTooLong
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import (
    Batch,
    TokenizedData,
    TrainingData,
    num_before_learned,
    tokens_end_to_end,
)
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.aligned_answer import FitCounter, LogprobsMisfit, TokenAligner
from crashproof.distillation.text.chat import split_at_answer
from crashproof.distillation.text.server_logprobs import read_logprobs
from crashproof.distillation.text.tokenizer import encode_document, encode_text, end_id, padding_id
from crashproof.errors import DataError
from crashproof.pytorch.tensor_digest import sha256_of

__all__ = ["AnsweredFile", "has_logprobs", "read_answered_file"]

_NUM_LOOKED_AT = 100


class AnsweredFile(TrainingData):
    """Answers with the log-probabilities of their tokens; each process has all of them."""

    def __init__(self, samples: list[AnsweredSample], *, top_k: int, pad_id: int) -> None:
        self._samples = samples
        self._top_k = top_k
        sequences = [(each.sample.ids, each.labels()) for each in samples]
        self._tokens = TokenizedData(**tokens_end_to_end(sequences), pad_id=pad_id)

    def __len__(self) -> int:
        return len(self._samples)

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The tokens of these samples that are predicted."""
        return self._tokens.counts(indices)

    def digest(self) -> str:
        """See `TrainingData.digest`."""
        entries = sha256_of(*(repr(each.entries) for each in self._samples))
        return sha256_of(self._tokens.sha256(), entries, str(self._top_k))

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices, with the teacher's entries."""
        return with_topk(self._tokens.batch(indices), [self._samples[index] for index in indices], self._top_k)


def has_logprobs(config: DataConfig) -> bool:
    """Whether one of the first lines of the data has log-probabilities beside its answer."""
    if config.path is None:
        return False
    try:
        records = (record for file in select_files(config.path, split=config.split) for record in read_records(file))
        return any(record.content.get("logprobs") for record in islice(records, _NUM_LOOKED_AT))
    except DataError:
        # Whoever reads the whole file says what is wrong with it.
        return False


def read_answered_file(
    source: Source, tokenizer: PreTrainedTokenizerFast, *, max_length: int, on_too_long: str = OnTooLong.ERROR
) -> AnsweredFile:
    """Align the log-probabilities of each line with its answer; lines that do not fit are skipped and counted.

    Raises:
        DataError: The chat template refuses a line, or lines are too long.
        ModelMismatch: No line fits the student's tokens; names the first reason.
    """
    log_cut_off(source.samples)
    top_k = _largest_number_of_entries(source)
    aligner = TokenAligner(tokenizer, top_k=top_k)
    fits = FitCounter(num_answers=len(source.samples), all_are_known=True)
    census = LengthCensus(max_length=max_length, on_too_long=on_too_long)
    samples: list[AnsweredSample] = []
    for line in source.samples:
        place = source.place(line)
        try:
            sample = _sample(line, source, aligner, tokenizer)
        except LogprobsMisfit as misfit:
            fits.add_misfit(place, misfit)
            continue
        fits.add_fit(place)
        num_before = num_before_learned(sample.labels())
        num_kept = census.tokens_kept(place, len(sample.sample.ids), num_before=num_before)
        if num_kept:
            samples.append(sample.first(num_kept))
    fits.report()
    census.require_usable(source.where)
    census.report(source.where)
    return AnsweredFile(samples, top_k=top_k, pad_id=padding_id(tokenizer))


def _largest_number_of_entries(source: Source) -> int:
    """The most alternatives that a token of the file has."""
    most = 1
    for line in source.samples:
        try:
            tokens = read_logprobs(line.get("logprobs")) or []
        except ValueError:
            # It is skipped, and its reason reported, where it is aligned.
            continue
        most = max(most, *(len(token.alternatives) for token in tokens), 1)
    return most


def _sample(
    line: dict[str, Any], source: Source, aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast
) -> AnsweredSample:
    """One line's tokens."""
    before, said, after = _parts(line, source, tokenizer)
    last = [end_id(tokenizer)] if after is None else encode_text(tokenizer, after).ids
    if is_cut_off(line):
        last = []
    aligned = aligner.align(line.get("logprobs"), said, end_id=last[0] if last else None)
    before = before.removesuffix(" ") if aligned.takes_space else before
    prompt_ids = (encode_document if after is None else encode_text)(tokenizer, before).ids
    return answered_sample(prompt_ids, aligned, last)


def _parts(line: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str | None]:
    """The text before the answer, the answer, and what the template adds after it; None for a plain prompt."""
    if "messages" in line:
        if len(line["messages"]) - 1 in line.get("unlearned", ()):
            raise LogprobsMisfit("its last answer is context, and not to be learned")
        try:
            return split_at_answer(line["messages"], tokenizer, tools=line.get("tools"))
        except ValueError as error:
            raise source.place(line).error(str(error)) from error
    if "prompt" in line:
        return line["prompt"], line["answer"], None
    raise LogprobsMisfit("it is plain text, without an answer")
