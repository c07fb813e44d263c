"""Copy training state before it changes.

A save in the background writes a copy while training changes the original. The copy's memory is made once and used by
every save. It is made, and touched, before the first: a system gives memory out when it is written to for the first
time, which takes several times as long as the copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from crashproof.formatting import as_bytes
from crashproof.notices import Notices
from crashproof.pytorch.staging.device_copies import DeviceCopies
from crashproof.pytorch.staging.free_memory import free_memory_bytes
from crashproof.pytorch.staging.host_copies import HostCopies, local_part

__all__ = ["StateCopier"]

log = logging.getLogger("crashproof")

_SPARE_SHARE = 0.1
"""Of the copy's size: left free for all else."""


class _Copies(Protocol):
    def prepare(self, tensors: Mapping[str, Tensor]) -> None: ...

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def close(self) -> None: ...


class StateCopier:
    """Copies the same tensors again and again into the same memory. Not thread-safe."""

    def __init__(self, *, free_bytes: Callable[[], int | None] = free_memory_bytes) -> None:
        self._copies: _Copies | None = None
        self._has_memory = False
        self._free_bytes = free_bytes
        self._notices = Notices()

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the memory of the copies; for a thread beside the training, which may change the tensors meanwhile.

        Where too little is free, it is left to the copies.
        """
        try:
            self._choose(tensors).prepare(tensors)
        except MemoryError as error:
            self._tell(tensors, error)
        except RuntimeError as error:
            # Of a device. Whatever is wrong with it ends the training where it matters, in a step or a save.
            log.warning("The memory for saves could not be prepared (%s): the first save takes longer.", error)
        else:
            self._has_memory = True

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """A copy on the CPU, which the next call overwrites; None where there is too little memory for one."""
        try:
            copied = self._choose(tensors).copy(tensors)
        except MemoryError as error:
            self._tell(tensors, error)
            return None
        self._has_memory = True
        return copied

    def close(self) -> None:
        """Give the memory back."""
        if self._copies is not None:
            self._copies.close()

    def _choose(self, tensors: Mapping[str, Tensor]) -> _Copies:
        """How these tensors are copied, if there is memory for it."""
        if not self._has_memory:
            self._require(tensors)
        if self._copies is None:
            is_on_host = all(each.device.type == "cpu" for each in tensors.values())
            self._copies = HostCopies() if is_on_host else DeviceCopies()
        return self._copies

    def _require(self, tensors: Mapping[str, Tensor]) -> None:
        free = self._free_bytes()
        if free is not None and free < _size_of(tensors) * (1 + _SPARE_SHARE):
            raise MemoryError(f"{as_bytes(free)} are free")

    def _tell(self, tensors: Mapping[str, Tensor], error: MemoryError) -> None:
        self._notices.warn(
            "memory",
            "There is no memory for a copy of the training state (%s): %s. Training waits while it is saved. "
            "Smaller batches, or fewer workers that load data, leave more.",
            as_bytes(_size_of(tensors)),
            error,
        )


def _size_of(tensors: Mapping[str, Tensor]) -> int:
    parts = [local_part(each) for each in tensors.values()]
    return sum(each.numel() * each.element_size() for each in parts)
