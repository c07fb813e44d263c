"""Whether a checkpoint is the best so far."""

from __future__ import annotations

import math

from holdfast.records import CheckpointMetadata, TrainingSession

__all__ = ["has_lowest_loss"]


def has_lowest_loss(checkpoint: CheckpointMetadata, session: TrainingSession) -> bool:
    """Whether its loss is below that of every other checkpoint of the session; NaN is below nothing.

    Those of a timeline that a later attempt left do not count, nor does one of the same step: computed again, a
    step is as good as it was.
    """
    loss = _loss(checkpoint)
    others = [*session.checkpoints.values(), *session.checkpoints_beside]
    return not math.isnan(loss) and all(
        # Against NaN anything is better.
        not _loss(other) <= loss
        for other in others
        if other.checkpoint_step != checkpoint.checkpoint_step
        and other.checkpoint_step not in session.checkpoints_superseded
    )


def _loss(checkpoint: CheckpointMetadata) -> float:
    return math.nan if checkpoint.metrics is None else checkpoint.metrics.loss
