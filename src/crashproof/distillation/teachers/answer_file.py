"""A file of log-probabilities as teacher."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.api_data import CUT_REASONS, AnsweredSample, answered_sample, with_topk
from crashproof.distillation.data.text_data import Batch, Source, TokenizedData, TrainingData, tokens_end_to_end
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.text.aligned_answer import FitCounter, LogprobsMisfit, TokenAligner
from crashproof.distillation.text.chat import split_at_answer
from crashproof.distillation.text.server_logprobs import read_logprobs
from crashproof.distillation.text.tokenizer import encode_document, encode_text, end_id, padding_id
from crashproof.errors import DataError
from crashproof.json_lines import read_objects

__all__ = ["AnsweredFile", "has_logprobs", "read_answered_file"]

log = logging.getLogger("crashproof")

_NUM_LOOKED_AT = 100


class AnsweredFile(TrainingData):
    """Answers with the log-probabilities of their tokens; each process has all of them."""

    def __init__(self, samples: list[AnsweredSample], *, top_k: int, pad_id: int) -> None:
        self._samples = samples
        self._top_k = top_k
        sequences = [(each.sample.ids, _labels(each)) for each in samples]
        self._tokens = TokenizedData(**tokens_end_to_end(sequences), pad_id=pad_id)

    def __len__(self) -> int:
        return len(self._samples)

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The tokens of these samples that are predicted."""
        return self._tokens.counts(indices)

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices, with the teacher's entries."""
        return with_topk(self._tokens.batch(indices), [self._samples[index] for index in indices], self._top_k)


def has_logprobs(path: Path) -> bool:
    """Whether one of the first lines of a file of answers has log-probabilities."""
    try:
        return any(content.get("logprobs") for _, content in islice(read_objects(path), _NUM_LOOKED_AT))
    except DataError:
        # Whoever reads the whole file says what is wrong with it.
        return False


def read_answered_file(source: Source, tokenizer: PreTrainedTokenizerFast, *, max_length: int) -> AnsweredFile:
    """Align the log-probabilities of each line with its answer; lines that do not fit are skipped and counted.

    Raises:
        DataError: The chat template refuses a line.
        ModelMismatch: No line fits the student's tokens; names the first reason.
    """
    top_k = _largest_number_of_entries(source)
    aligner, fits = (
        TokenAligner(tokenizer, top_k=top_k),
        FitCounter(source.where, num_answers=len(source.samples), all_are_known=True),
    )
    samples: list[AnsweredSample] = []
    num_cut = 0
    for line in source.samples:
        try:
            sample, is_cut = _sample(line, source, aligner, tokenizer, max_length)
        except LogprobsMisfit as misfit:
            fits.add_misfit(line["line"], misfit)
            continue
        fits.add_fit(line["line"])
        samples.append(sample)
        num_cut += is_cut
    fits.report()
    if num_cut:
        log.warning(
            "Truncated %d of %d answers to data.max_length, %d tokens; no end is learned behind them.",
            num_cut,
            len(samples),
            max_length,
        )
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
    line: dict[str, Any], source: Source, aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> tuple[AnsweredSample, bool]:
    """One line's tokens, and whether they were truncated."""
    before, said, after = _parts(line, source, tokenizer)
    last = [end_id(tokenizer)] if after is None else encode_text(tokenizer, after).ids
    if line.get("finish_reason") in CUT_REASONS:
        last = []
    aligned = aligner.align(line.get("logprobs"), said, end_id=last[0] if last else None)
    before = before.removesuffix(" ") if aligned.takes_space else before
    prompt_ids = (encode_document if after is None else encode_text)(tokenizer, before).ids
    if len(prompt_ids) >= max_length:
        raise LogprobsMisfit(f"the {len(prompt_ids):,} tokens before it fill data.max_length, {max_length:,}")
    num_tokens = len(prompt_ids) + len(aligned.ids) + len(last)
    return answered_sample(prompt_ids, aligned, last, max_length=max_length), num_tokens > max_length


def _parts(line: dict[str, Any], source: Source, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str | None]:
    """The text before the answer, the answer, and what the template adds after it; None for a plain prompt."""
    if "messages" in line:
        try:
            return split_at_answer(line["messages"], tokenizer, tools=line.get("tools"))
        except ValueError as error:
            raise DataError(source.where, str(error), line=line["line"]) from error
    if "prompt" in line:
        return line["prompt"], line["teacher_text"], None
    raise LogprobsMisfit("it is plain text, without an answer")


def _labels(each: AnsweredSample) -> list[int]:
    sample = each.sample
    return [token if counted else IGNORED for token, counted in zip(sample.ids, sample.is_predicted, strict=True)]
