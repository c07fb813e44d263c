"""Which samples come next.

The order is a pure function of (seed, epoch, position): nothing has to be replayed to go on in the middle, and no
sample that was consumed is read again.
"""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["sample_indices"]


def sample_indices(num_samples: int, *, seed: int, position: int, count: int, shuffle: bool = True) -> list[int]:
    """The indices of the `count` samples after the first `position`, over as many epochs as that takes.

    Each epoch is a permutation of all samples, drawn from the seed and the epoch's number alone. A batch may span
    the end of an epoch, so every sample is consumed exactly once an epoch, whatever the batch size.

    Raises:
        ValueError: there are no samples.
    """
    if num_samples < 1:
        raise ValueError("A data set without samples has no order.")
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(position + len(indices), num_samples)
        order = _order(num_samples, seed, epoch) if shuffle else range(num_samples)
        indices += order[offset : offset + count - len(indices)]
    return indices


@lru_cache(maxsize=2)
def _order(num_samples: int, seed: int, epoch: int) -> list[int]:
    # A generator of its own: the training's random numbers are not touched. Large odd factors keep the seeds of
    # neighbouring runs and epochs apart.
    mixed = (seed * 6364136223846793005 + epoch * 1442695040888963407 + 1) % 2**63
    generator = torch.Generator().manual_seed(mixed)
    order: list[int] = torch.randperm(num_samples, generator=generator).tolist()
    return order
