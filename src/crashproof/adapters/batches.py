"""Count the samples of a batch.

A collator may return anything. Shapes and lengths are read, and nothing else: no device is waited for, and no
iterator is consumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from crashproof.plain_values import named_fields

__all__ = ["num_samples", "num_tokens"]

_TOKENS = "input_ids"
_DEEPEST = 4


def num_samples(batch: object) -> int:
    """The samples in a batch of any shape; 0 if they cannot be counted.

    In a mapping, and in a tuple of tensors, the first tensor counts; in a list, each element is a sample.
    """
    return _count(batch, _samples)


def num_tokens(batch: object) -> int:
    """The elements of `input_ids`, wherever it lies in a batch; 0 if there is none."""
    return _count(batch, _tokens)


def _count(batch: object, counter: Any) -> int:
    try:
        return int(counter(batch, _DEEPEST))
    except Exception:
        # A batch's own methods may fail; what cannot be counted counts nothing.
        return 0


def _samples(batch: Any, depth: int) -> int:
    if batch is None or isinstance(batch, (str, bytes)) or not depth:
        return 0
    shape = getattr(batch, "shape", None)
    if isinstance(shape, tuple):
        return int(shape[0]) if shape else 0
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return _samples_of_list(batch, depth)
    fields = named_fields(batch)
    return 0 if fields is None else _samples_of_fields(fields, depth)


def _samples_of_fields(fields: Mapping[Any, object], depth: int) -> int:
    lengths = [length for value in fields.values() if (length := _length(value))]
    if lengths:
        return lengths[0]
    counts = (_samples(value, depth - 1) for value in fields.values())
    return next((count for count in counts if count), 0)


def _samples_of_list(batch: list[Any] | tuple[Any, ...], depth: int) -> int:
    lengths = {length for each in batch if (length := _length(each))}
    if len(lengths) == 1:
        # As `(inputs, labels)`: one tensor for each field. A list of samples has no common length but by chance.
        return lengths.pop()
    if isinstance(batch, tuple) and any(isinstance(each, Mapping) for each in batch):
        return next((count for each in batch if (count := _samples(each, depth - 1))), 0)
    return len(batch)


def _length(value: object) -> int:
    """The first dimension of a tensor or an array; 0 for anything else."""
    shape = getattr(value, "shape", None)
    return int(shape[0]) if isinstance(shape, tuple) and shape else 0


def _tokens(batch: Any, depth: int) -> int:
    if batch is None or isinstance(batch, (str, bytes)) or not depth:
        return 0
    if isinstance(batch, (list, tuple)):
        return sum(_tokens(each, depth - 1) for each in batch)
    fields = None if hasattr(batch, "shape") else named_fields(batch)
    if fields is None:
        return 0
    if _TOKENS in fields:
        return _size(fields[_TOKENS])
    return sum(_tokens(each, depth - 1) for each in fields.values())


def _size(tokens: Any) -> int:
    if hasattr(tokens, "shape"):
        return math.prod(tokens.shape)
    return sum(_size(each) if isinstance(each, (list, tuple)) or hasattr(each, "shape") else 1 for each in tokens)
