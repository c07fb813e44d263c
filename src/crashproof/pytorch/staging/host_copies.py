"""Copy tensors from the host's memory to other memory of the host.

PyTorch copies a tensor with all its threads, and each tensor waits for the slowest of them. Where another process or
the save before has a core, that takes a hundred times as long as one thread, which copies as fast as the memory is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["HostCopies", "local_part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A tensor, or this process's part of it, and the memory of its copy."""

    source: Tensor
    target: Tensor

    def claim(self) -> None:
        """Write to all of the memory, so that the system gives it out."""
        ctypes.memset(self.target.data_ptr(), 0, _num_bytes(self.target))

    def copy(self) -> None:
        if self.source.stride() == self.target.stride():
            # Neither has gaps. The interpreter's lock is free meanwhile.
            ctypes.memmove(self.target.data_ptr(), self.source.data_ptr(), _num_bytes(self.source))
        else:
            self.target.copy_(self.source)


class HostCopies:
    """Copies of tensors on the CPU; the same memory is used as long as the tensors are the same."""

    def __init__(self) -> None:
        self._places: Hashable = None
        self._pairs: list[_Pair] = []
        self._copies: dict[str, Tensor] = {}

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Make and touch the memory.

        Raises:
            MemoryError: the system has none.
        """
        if self._make(tensors):
            for pair in self._pairs:
                pair.claim()

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy, into memory that the next call overwrites.

        Raises:
            MemoryError: the system has none.
        """
        self._make(tensors)
        for pair in self._pairs:
            pair.copy()
        return self._copies

    def close(self) -> None:
        """Give the memory back."""
        self._places, self._pairs, self._copies = None, [], {}

    def _make(self, tensors: Mapping[str, Tensor]) -> bool:
        """Make memory for these tensors; return whether it is new."""
        parts = {name: local_part(tensor) for name, tensor in tensors.items()}
        places = tuple((name, _place_of(part)) for name, part in parts.items())
        if places == self._places:
            return False
        self.close()
        # Tensors that share memory (tied weights) share a copy too.
        pairs: dict[Hashable, _Pair] = {}
        for part in parts.values():
            if _place_of(part) not in pairs:
                pairs[_place_of(part)] = _Pair(source=part, target=_memory_for(part))
        self._copies = {name: _like(tensor, pairs[_place_of(parts[name])].target) for name, tensor in tensors.items()}
        self._pairs, self._places = list(pairs.values()), places
        return True


def local_part(tensor: Tensor) -> Tensor:
    """A tensor, or of a sharded one the part of this process; it shares the memory."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def _place_of(part: Tensor) -> Hashable:
    return part.data_ptr(), part.shape, part.stride(), part.dtype


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _memory_for(part: Tensor) -> Tensor:
    try:
        return torch.empty_like(part)
    except RuntimeError as error:
        # PyTorch has no class of its own for it.
        raise MemoryError(str(error).splitlines()[0]) from error


def _like(tensor: Tensor, memory: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return memory
    return DTensor.from_local(
        memory, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
