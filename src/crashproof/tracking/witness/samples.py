"""Digest the samples of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crashproof.plain_values import named_fields
from crashproof.tracking.witness.leaves import Leaves, digest_of_bytes, is_array

__all__ = ["samples_of"]

_MOST_ROWS = 1 << 16
"""Of an array that are samples; more are one."""


def samples_of(batch: object) -> list[str]:
    """One text for each sample of a batch, in order: equal samples have equal ones, wherever they come.

    Numbers and texts are taken as ids, one a sample. The rows of an array are samples; in a mapping, and in a list of
    arrays of one length, what stands in the same row of each belongs to one sample. Any other list is of samples or
    of smaller batches, one after the other.
    """
    if is_array(batch):
        return _rows([batch])
    fields = None if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields") else named_fields(batch)
    if fields is not None:
        return _samples_of_fields(fields)
    if isinstance(batch, (list, tuple)):
        if _have_one_length(list(batch)):
            return _rows(list(batch))
        return [sample for each in batch for sample in samples_of(each)]
    return [_text_of(batch)]


def _samples_of_fields(fields: Mapping[Any, object]) -> list[str]:
    arrays = [value for value in fields.values() if _num_rows(value)]
    return _rows(arrays) if _have_one_length(arrays) else [_text_of(fields)]


def _have_one_length(values: list[Any]) -> bool:
    lengths = {_num_rows(each) for each in values}
    return len(lengths) == 1 and 0 not in lengths


def _num_rows(value: Any) -> int:
    return int(value.shape[0]) if is_array(value) and len(value.shape) else 0


def _rows(arrays: list[Any]) -> list[str]:
    """One text for each row of several arrays."""
    num_rows = _num_rows(arrays[0])
    if not 0 < num_rows <= _MOST_ROWS:
        return [_text_of(arrays)]
    if len(arrays) == 1 and len(arrays[0].shape) == 1:
        # Ids, as a list of numbers would be.
        return [_text_of(each) for each in arrays[0].tolist()]
    on_host = [each.detach().cpu() if hasattr(each, "detach") else each for each in arrays]
    return [_text_of([each[row] for each in on_host]) for row in range(num_rows)]


def _text_of(value: object) -> str:
    """A short text that stands for a value."""
    leaves = Leaves()
    leaves.add("", value)
    parts = [f"{name}={text}" for name, text in (leaves.values | leaves.unreadable).items()]
    if len(parts) == 1 and len(parts[0]) <= 20:
        return parts[0].removeprefix("=")
    return digest_of_bytes("\0".join(parts).encode())[:12]
