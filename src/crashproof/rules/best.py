"""Whether a checkpoint is the best so far."""

from __future__ import annotations

import math

from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.session import TrainingSession

__all__ = ["has_lowest_loss"]


def has_lowest_loss(checkpoint: CheckpointMetadata, session: TrainingSession) -> bool:
    """Whether its loss is below that of every other checkpoint of the session, also of those that were removed.

    NaN is below nothing. Those of a timeline that a later attempt left do not count, nor does one of the same step:
    computed again, a step is as good as it was.
    """
    loss = _loss(checkpoint)
    before = [
        _loss(other)
        for other in [*session.checkpoints.values(), *session.checkpoints_beside]
        if other.checkpoint_step != checkpoint.checkpoint_step
        and other.checkpoint_step not in session.checkpoints_superseded
    ]
    if session.lowest_loss_removed is not None:
        before.append(session.lowest_loss_removed)
    # Against NaN anything is better.
    return not math.isnan(loss) and not any(each <= loss for each in before)


def _loss(checkpoint: CheckpointMetadata) -> float:
    return math.nan if checkpoint.metrics is None else checkpoint.metrics.loss
