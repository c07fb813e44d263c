"""A checksum of tensors, computed where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crashproof.pytorch.tensor_digest import sha256_of

__all__ = ["checksum_of"]

_ELEMENTS_AT_A_TIME = 1 << 24
"""Each takes 24 bytes of the device for a moment."""
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTOR = 6364136223846793005
"""Of a linear congruential generator (Knuth): odd, so that no bit is lost modulo 2^64."""


def checksum_of(tensors: Sequence[Tensor]) -> str:
    """A checksum of all bits and their places, against accidents; equal on devices of one kind.

    On the CPU it is a SHA-256. On another device nothing is copied but one number for each tensor, and the host waits
    once.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return sha256_of(*tensors)
    sums = torch.stack([_sum_of(tensor.detach()) for tensor in tensors])
    return sha256_of(sums.cpu())


def _sum_of(tensor: Tensor) -> Tensor:
    """The sum of the elements' bits, each times an odd number that depends on its place; (), modulo 2^64."""
    words = tensor.contiguous().reshape(-1).view(_WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), _ELEMENTS_AT_A_TIME):
        part = words[start : start + _ELEMENTS_AT_A_TIME].to(torch.int64)
        places = torch.arange(start, start + len(part), dtype=torch.int64, device=tensor.device)
        total += (part * places.mul_(2 * _FACTOR - 2**64).add_(1)).sum()
    return total
