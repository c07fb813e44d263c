"""Chunked losses of single tokens.

The logits of a large vocabulary are the largest tensors of a training step. Here a model's last hidden states are
kept instead: the logits of a few rows at a time are computed from them, reduced to one value per row, and recomputed
in the backward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016). All losses of a step share
one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["RowsLoss", "values_of_rows"]

RowsLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (rows, vocabulary), at least fp32, and the rows' flat positions to one value per row, (rows,).

It is called again in the backward pass, so it must be deterministic.
"""


def values_of_rows(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    rows: Tensor,
    losses: Mapping[str, RowsLoss],
    *,
    chunk_tokens: int,
) -> dict[str, Tensor]:
    """The value of each loss for each row; gradients flow to the hidden states and to the head's weights.

    Args:
        hidden: (batch, length, width): input of the head.
        head: Maps (rows, width) to logits (rows, vocabulary).
        rows: (rows,) of int64: flat positions in batch times length.
        losses: By name.
        chunk_tokens: Rows whose logits are in memory at a time.

    Returns:
        (rows,) for each name, in the order of `rows`.
    """
    if not losses:
        return {}

    def of_chunk(states: Tensor, positions: Tensor) -> Tensor:
        logits = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.stack([loss(logits, positions) for loss in losses.values()])

    chosen = hidden.flatten(0, 1).index_select(0, rows)
    # At least one chunk, so that a batch without rows has a zero gradient, not None.
    chunks = zip(torch.split(chosen, chunk_tokens), torch.split(rows, chunk_tokens), strict=True)
    values = [
        checkpoint(of_chunk, states, positions, use_reentrant=False, preserve_rng_state=False)
        for states, positions in chunks
    ]
    return dict(zip(losses, torch.cat(values, dim=1), strict=True))
