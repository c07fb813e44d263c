"""Copy tensors from a device to the host's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

__all__ = ["DeviceCopies"]


class DeviceCopies:
    """Copies in page-locked memory of the host, which a device writes to without the host's help."""

    def __init__(self) -> None:
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=torch.cuda.is_available(),
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=torch.cuda.is_available(),
            )
        )

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Make and lock the memory, by a copy that nobody reads, beside what the device computes.

        Raises:
            MemoryError: the system has none.
        """
        device = next((each.device for each in tensors.values() if each.device.type == "cuda"), None)
        if device is None:
            self.copy(tensors)
            return
        # Its own stream: the steps that are computed meanwhile do not wait for the copy.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it so.
        with torch.cuda.device(device), torch.cuda.stream(stream):
            self.copy(tensors)

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy, into memory that the next call overwrites.

        Raises:
            MemoryError: the system has none.
        """
        try:
            return cast(dict[str, Tensor], self._stager.stage(dict(tensors)))
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise MemoryError(str(error).splitlines()[0]) from error

    def close(self) -> None:
        """Give the memory back."""
        self._stager.close()
