"""Training data with captured logits."""

from __future__ import annotations

import dataclasses
import math
import operator
from bisect import bisect_right
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.captured_folder import CAPTURE_AGAIN, CapturedFolder, CaptureManifest, ShardRecord
from crashproof.distillation.data.shards import ShardReader, rows_before_samples
from crashproof.distillation.data.text_data import Batch, Sample, TokenizedData, TopK, TrainingData
from crashproof.distillation.text.token_bytes import TokenBytes, token_bytes
from crashproof.errors import ConfigError, DataError, ModelMismatch

__all__ = ["CapturedLogits", "LogitsData"]


class LogitsData(TrainingData):
    """Tokens with the teacher's captured distributions."""

    def __init__(
        self, tokens: TokenizedData, first_samples: list[int], shards: list[ShardReader], *, top_k: int
    ) -> None:
        self._tokens = tokens
        self._first_samples = first_samples
        self._shards = shards
        self._top_k = top_k
        self._is_predicted = tokens.is_predicted()
        self._rows_before = rows_before_samples(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The tokens of these samples that are predicted."""
        return self._tokens.counts(indices)

    def digest(self) -> str:
        """That of the tokens; the manifest, which is part of the run's identity, has those of the shards."""
        return self._tokens.sha256()

    def batch(self, indices: list[int]) -> Batch:
        """The samples at these indices; positions without a prediction have no entries."""
        batch = self._tokens.batch(indices)
        shape = (*batch.labels.shape, self._top_k)
        ids = torch.full(shape, -1, dtype=torch.long)
        logprobs = torch.full(shape, -math.inf)
        for row, index in enumerate(indices):
            positions = self._predicting_positions(index)
            topk = self._topk_of(index)
            ids[row, positions] = topk.ids
            logprobs[row, positions] = topk.logprobs
        return dataclasses.replace(batch, topk=TopK(ids=ids, logprobs=logprobs))

    def _predicting_positions(self, index: int) -> Tensor:
        start, end = int(self._tokens.starts[index]), int(self._tokens.starts[index + 1])
        # A position predicts the token after it.
        return self._is_predicted[start + 1 : end].nonzero().squeeze(-1)

    def _topk_of(self, index: int) -> TopK:
        number = bisect_right(self._first_samples, index) - 1
        before_shard = self._rows_before[self._first_samples[number]]
        before, after = self._rows_before[index], self._rows_before[index + 1]
        return self._shards[number].topk(int(before - before_shard), int(after - before))


class CapturedLogits:
    """A folder that `crashproof capture-logits` has completed."""

    def __init__(self, folder: CapturedFolder, manifest: CaptureManifest) -> None:
        self._folder = folder
        self._manifest = manifest

    @classmethod
    def open(cls, path: Path) -> CapturedLogits:
        """Read the manifest of a folder.

        Raises:
            DataError: The folder has no captured logits, or is incomplete, or its manifest is damaged.
            NewerFormat: A later version wrote it.
        """
        folder = CapturedFolder(path)
        return cls(folder, folder.read_complete())

    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer that the data were captured with.

        Raises:
            DataError: It is damaged or missing.
        """
        problem = self._folder.problem_with_tokenizer(self._manifest)
        if problem is not None:
            raise DataError(self._folder.tokenizer, problem, hint=CAPTURE_AGAIN)
        return self._folder.tokenizer

    def require_fit(self, tokens: TokenizedData, tokenizer: PreTrainedTokenizerFast, *, temperature: float) -> None:
        """Require that they were captured from exactly these tokens, and at the temperature of the loss.

        Raises:
            ConfigError: The temperatures differ.
            DataError: A shard is damaged, so the first difference in the data cannot be found.
            ModelMismatch: The data differ; names the first token that does.
        """
        captured_from = self._manifest.captured_from
        if captured_from.temperature != temperature:
            raise ConfigError(
                f"loss.temperature is {temperature}, and the logits in {self._folder.root} were captured at "
                f"{captured_from.temperature}.",
                hint=f"Set loss.temperature to {captured_from.temperature}, or capture them again.",
            )
        if captured_from.tokens_sha256 != tokens.sha256():
            difference = self._first_difference(tokens, token_bytes(tokenizer))
            raise ModelMismatch(
                f"The logits in {self._folder.root} were captured from other data: {difference}.",
                hint="Restore data.path and data.max_length, or capture the logits of these data in another folder.",
            )

    def beside(self, tokens: TokenizedData) -> LogitsData:
        """These tokens with their captured distributions; verifies every shard.

        Raises:
            DataError: A shard is damaged or missing; names it.
        """
        return LogitsData(
            tokens,
            [shard.first_sample for shard in self._manifest.shards],
            [self._open_shard(shard) for shard in self._manifest.shards],
            top_k=self._manifest.captured_from.top_k,
        )

    def _open_shard(self, shard: ShardRecord) -> ShardReader:
        path = self._folder.root / shard.file
        problem = self._folder.problem_with(shard)
        if problem is not None:
            raise DataError(path, problem, hint=CAPTURE_AGAIN)
        return ShardReader(path)

    def _first_difference(self, tokens: TokenizedData, meanings: list[TokenBytes | None]) -> str:
        """The first difference between the captured tokens (there) and those to train on (here)."""
        num_there = sum(shard.num_samples for shard in self._manifest.shards)
        captured = (sample for shard in self._manifest.shards for sample in self._open_shard(shard).samples())
        for index, (there, here) in enumerate(zip(captured, tokens.samples(), strict=False)):
            if there != here:
                return f"sample {index + 1}, {_difference(there, here, meanings)}"
        return f"there are {num_there:,} samples there and {len(tokens):,} here"


def _difference(there: Sample, here: Sample, meanings: list[TokenBytes | None]) -> str:
    for place, (one, other) in enumerate(zip(there.ids, here.ids, strict=False), 1):
        if one != other:
            return (
                f"token {place} is {one} ({_meaning(meanings, one)}) there and "
                f"{other} ({_meaning(meanings, other)}) here"
            )
    if len(there.ids) != len(here.ids):
        return f"which has {len(there.ids):,} tokens there and {len(here.ids):,} here"
    place = [*map(operator.ne, there.is_predicted, here.is_predicted)].index(True)
    words = "learned there but not here" if there.is_predicted[place] else "learned here but not there"
    return f"token {place + 1} is {words}"


def _meaning(meanings: list[TokenBytes | None], token: int) -> str:
    known = meanings[token] if token < len(meanings) else None
    return str(known or "no token of this tokenizer")
