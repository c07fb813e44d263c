"""Tensors of weight files, read when they are needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crashproof.distillation.models.config_file import why
from crashproof.distillation.models.deferred.tensor import CannotDefer, DeferredTensor
from crashproof.errors import ConfigError

__all__ = ["ReadBytes", "stored_tensors"]


@dataclass(slots=True, kw_only=True)
class ReadBytes:
    """How much was read of some files, and how much is in them."""

    num_read: int = 0
    num_stored: int = 0

    def counts(self) -> tuple[int, int]:
        """What there is, and what was read of it."""
        return self.num_stored, self.num_read


def stored_tensors(files: list[Path], read: ReadBytes) -> dict[str, DeferredTensor]:
    """The tensors of weight files by name, as `transformers` takes them; a later file wins.

    Raises:
        CannotDefer: a file can only be read as a whole.
    """
    tensors: dict[str, DeferredTensor] = {}
    for file in _data_files(files):
        tensors |= (_of_safetensors if file.suffix == ".safetensors" else _of_pickle)(file, read)
    return tensors


def _data_files(files: list[Path]) -> list[Path]:
    """The files themselves, in the place of an index of pickled ones."""
    found: list[Path] = []
    for file in files:
        if file.suffix == ".json":
            names = set(json.loads(file.read_bytes())["weight_map"].values())
            found += [file.parent / name for name in sorted(names)]
        else:
            found.append(file)
    return found


def _of_safetensors(file: Path, read: ReadBytes) -> dict[str, DeferredTensor]:
    opened: Any = safe_open(str(file), framework="pt")
    return {
        name: _deferred(file, name, opened.get_slice(name), opened.get_slice(name).get_shape(), read)
        for name in opened.keys()  # noqa: SIM118 - it is no dict
    }


def _of_pickle(file: Path, read: ReadBytes) -> dict[str, DeferredTensor]:
    try:
        # Mapped into memory: a row is read when it is looked at.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        raise CannotDefer(f"{file.name} is in a format that is read as a whole") from error
    return {
        name: _deferred(file, name, tensor, tensor.shape, read)
        for name, tensor in content.items()
        if isinstance(tensor, Tensor)
    }


def _deferred(file: Path, name: str, stored: Any, shape: Any, read: ReadBytes) -> DeferredTensor:
    source = _Stored(file=file, name=name, stored=stored, read=read)
    like = torch.empty(tuple(shape), dtype=source.dtype(), device="meta")
    read.num_stored += like.nbytes
    return DeferredTensor(like, source)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """One tensor of a file, mapped into memory."""

    file: Path
    name: str
    stored: Any
    """A slice of safetensors, or a mapped tensor; both are indexed alike."""
    read: ReadBytes

    def dtype(self) -> torch.dtype:
        shape = self.stored.shape if isinstance(self.stored, Tensor) else self.stored.get_shape()
        part: Tensor = self.stored[0:0] if len(shape) else self.stored[...]
        return part.dtype

    def whole(self) -> Tensor:
        return self._take(lambda: self.stored[...])

    def rows(self, first: int, last: int) -> Tensor:
        return self._take(lambda: self.stored[first:last])

    def _take(self, take: Callable[[], Tensor]) -> Tensor:
        try:
            taken = take()
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"{self.name} cannot be read from {self.file} ({why(error)}).",
                hint="Copy the folder again, or save the model again with save_pretrained.",
            ) from error
        self.read.num_read += taken.nbytes
        return taken
