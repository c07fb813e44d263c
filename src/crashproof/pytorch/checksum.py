"""A checksum of tensors, computed where they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["checksum_of"]

_ELEMENTS_AT_A_TIME = 1 << 24
"""Each takes 16 bytes for a moment."""
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTOR = 6364136223846793005
"""Of a linear congruential generator (Knuth): odd, so that no bit is lost modulo 2^64."""


def checksum_of(tensors: Iterable[Tensor]) -> int:
    """A 64-bit number from all bits and their places; waits for the device once, at the end.

    Equal tensors have the same one on every device. It is made against accidents, not against forgery.
    """
    sums = [_sum_of(tensor.detach()) for tensor in tensors]
    if not sums:
        return 0
    on_host = torch.stack([each.to(sums[0].device) for each in sums]).tolist()
    total = 0
    for number in on_host:
        total = (total * _FACTOR + number) % 2**64
    return total


def _sum_of(tensor: Tensor) -> Tensor:
    """The sum of the elements' bits, each times an odd number that depends on its place; ()."""
    words = tensor.contiguous().reshape(-1).view(_WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), _ELEMENTS_AT_A_TIME):
        part = words[start : start + _ELEMENTS_AT_A_TIME].to(torch.int64)
        places = torch.arange(start, start + len(part), dtype=torch.int64, device=tensor.device)
        total += (part * (places.mul_(2 * _FACTOR).add_(1))).sum()
    return total
