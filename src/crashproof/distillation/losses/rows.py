"""Losses of single tokens, a few rows of logits at a time.

The logits of a large vocabulary are the largest thing in a training step. Here a model's last hidden states are kept
instead, and the logits of a few rows at a time are made from them, reduced to a number a row, and made again in the
backward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016). All losses of a step share one
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["RowsLoss", "values_of_rows"]

RowsLoss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits (rows, vocabulary) in fp32 at least, and the rows' flat positions; returns a number a row, (rows,).

It is called again in the backward pass, so it must give the same each time.
"""


def values_of_rows(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    rows: Tensor,
    losses: Mapping[str, RowsLoss],
    *,
    chunk_tokens: int,
) -> dict[str, Tensor]:
    """What each loss gives for each row; gradients flow to the hidden states and to the head's weights.

    Args:
        hidden: (batch, length, width): what the head is given.
        head: Takes (rows, width), returns logits (rows, vocabulary).
        rows: (rows,) of int64: flat positions in batch times length.
        losses: By name.
        chunk_tokens: Rows whose logits are alive at a time.

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
    # One chunk at least, so that a batch without any row has the gradient zero and not none.
    chunks = zip(torch.split(chosen, chunk_tokens), torch.split(rows, chunk_tokens), strict=True)
    values = [
        checkpoint(of_chunk, states, positions, use_reentrant=False, preserve_rng_state=False)
        for states, positions in chunks
    ]
    return dict(zip(losses, torch.cat(values, dim=1), strict=True))
