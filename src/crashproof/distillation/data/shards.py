"""Shards of captured logits.

A shard is a safetensors file, readable by any program that reads those. A token id takes two bytes, three if the
vocabulary has more than 65,536 entries; a log-probability takes two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import safe_open
from torch import Tensor

from crashproof.distillation.data.text_data import Sample, TokenizedData, TopK

__all__ = ["ShardPlan", "ShardReader", "pack_shard", "plan_shards", "rows_before_samples"]

_LOW_IDS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """The samples of one shard."""

    first_sample: int
    num_samples: int
    num_rows: int
    """Predicted tokens in them."""


def plan_shards(data: TokenizedData, shard_tokens: int) -> list[ShardPlan]:
    """Split the samples in order; a shard ends with the one that brings it to `shard_tokens` predicted tokens."""
    rows_before = rows_before_samples(data)
    plans, first = [], 0
    while first < len(data):
        wanted = rows_before[first] + shard_tokens
        end = min(len(data), int(torch.searchsorted(rows_before, wanted)))
        num_rows = int(rows_before[end] - rows_before[first])
        plans.append(ShardPlan(first_sample=first, num_samples=end - first, num_rows=num_rows))
        first = end
    return plans


def rows_before_samples(data: TokenizedData) -> Tensor:
    """(samples + 1,): the number of predicted tokens before each sample, and in all."""
    return data.sums_before(data.is_predicted())


def pack_shard(samples: TokenizedData, topk: TopK, *, vocab_size: int) -> bytes:
    """The bytes of a file; the same for the same samples and entries.

    Args:
        samples: The samples of the shard.
        topk: (rows, k): a row for each of their predicted tokens, in order.
        vocab_size: Determines the width of an id.
    """
    tensors = {
        **_in_planes("tokens", samples.input_ids, vocab_size),
        "is_predicted": samples.is_predicted().numpy().astype(np.uint8),
        "starts": samples.starts.numpy(),
        **_in_planes("ids", topk.ids, vocab_size),
        "logprobs": topk.logprobs.half().numpy(),
    }
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def _in_planes(name: str, ids: Tensor, vocab_size: int) -> dict[str, np.ndarray]:
    """The low 16 bits of each id, and the 8 bits above them if the vocabulary needs them."""
    planes = {name: (ids % _LOW_IDS).numpy().astype(np.uint16)}
    if vocab_size > _LOW_IDS:
        planes[f"{name}_high"] = (ids // _LOW_IDS).numpy().astype(np.uint8)
    return planes


class ShardReader:
    """Reads parts of a shard; the rest stays on disk."""

    def __init__(self, path: Path) -> None:
        # This maps the file into memory.
        self._file: Any = safe_open(str(path), framework="np")
        names = self._file.keys()  # type: ignore[no-untyped-call]  # safetensors leaves it so.
        self._has_high_ids = "ids_high" in names

    def topk(self, first_row: int, num_rows: int) -> TopK:
        """The entries of consecutive rows, (rows, k)."""
        rows = slice(first_row, first_row + num_rows)
        logprobs = self._file.get_slice("logprobs")[rows].astype(np.float32)
        return TopK(ids=torch.from_numpy(self._ids("ids", rows)), logprobs=torch.from_numpy(logprobs))

    def samples(self) -> Iterator[Sample]:
        """The samples that the entries were captured from."""
        ids, is_predicted = self._ids("tokens", slice(None)), self._file.get_tensor("is_predicted").astype(bool)
        for start, end in pairwise(self._file.get_tensor("starts").tolist()):
            yield Sample(ids=ids[start:end].tolist(), is_predicted=is_predicted[start:end].tolist())

    def _ids(self, name: str, rows: slice) -> np.ndarray:
        ids: np.ndarray = self._file.get_slice(name)[rows].astype(np.int64)
        if self._has_high_ids:
            ids += self._file.get_slice(f"{name}_high")[rows].astype(np.int64) * _LOW_IDS
        return ids
