"""The checkpoints of a session."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint
from crashproof.records.codec import nonfinite_names
from crashproof.records.events import (
    CheckpointHashed,
    CheckpointRecorded,
    CheckpointRemoved,
    CheckpointsDeleted,
    CheckpointSetAside,
)
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import Evaluation, TrainingSession

__all__ = [
    "CheckpointEvent",
    "apply_checkpoint_event",
    "has_lowest_loss",
    "supersede_checkpoints",
    "update_at",
    "with_evaluation",
]

CheckpointEvent = CheckpointRecorded | CheckpointHashed | CheckpointSetAside | CheckpointRemoved | CheckpointsDeleted


def apply_checkpoint_event(session: TrainingSession, event: CheckpointEvent) -> None:
    """Apply one event of a checkpoint."""
    match event:
        case CheckpointRecorded():
            _add(session, event.checkpoint)
            session.goodput.checkpointing += event.seconds
        case CheckpointHashed():
            if (known := _at(session, event)) is not None:
                session.checkpoints[event.step] = msgspec.structs.replace(
                    known, num_bytes=event.num_bytes, sha256=event.sha256, files=event.files
                )
        case CheckpointSetAside():
            if _at(session, event) is not None:
                _quarantine(session, event)
        case CheckpointRemoved():
            _remove(session, event)
        case _:  # CheckpointsDeleted
            session.checkpoints_removing = event.left


def supersede_checkpoints(session: TrainingSession, *, step: int, attempt: int) -> None:
    """Mark the checkpoints at or beyond a step that earlier attempts recorded: the attempt computes it again."""
    for checkpoint in session.checkpoints.values():
        is_superseded = checkpoint.checkpoint_step >= step and checkpoint.attempt < attempt
        if is_superseded and checkpoint.checkpoint_step not in session.checkpoints_superseded:
            session.checkpoints_superseded.append(checkpoint.checkpoint_step)


def update_at(session: TrainingSession, step: int) -> MetricsSnapshot | None:
    """The update of a step, or the newest one before it; None if the history does not reach back that far."""
    # From the end: a checkpoint is recorded at the newest step, or a few behind it.
    return next((line for line in reversed(session.metrics_history) if line.step <= step), None)


def with_evaluation(checkpoint: CheckpointMetadata, evaluations: Iterable[Evaluation]) -> CheckpointMetadata:
    """The checkpoint with the results that its own attempt measured at its step, if there are any."""
    for evaluation in evaluations:
        if (evaluation.step, evaluation.attempt) == (checkpoint.checkpoint_step, checkpoint.attempt):
            names = nonfinite_names({"evaluation": evaluation.results})
            checkpoint = msgspec.structs.replace(
                checkpoint, evaluation=evaluation.results, nonfinite=names or msgspec.UNSET
            )
    return checkpoint


def has_lowest_loss(checkpoint: CheckpointMetadata, session: TrainingSession) -> bool:
    """Whether its loss is below that of every other checkpoint of the session, including removed ones.

    NaN is below nothing. Superseded checkpoints do not count, nor does one at the same step: a recomputed step is as
    good as it was.
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


def _at(session: TrainingSession, event: CheckpointHashed | CheckpointSetAside) -> CheckpointMetadata | None:
    """The checkpoint that an event is about; None if another one has taken its step since."""
    known = session.checkpoints.get(event.step)
    return known if known is not None and known.checkpoint_path == event.checkpoint_path else None


def _add(session: TrainingSession, checkpoint: CheckpointMetadata) -> None:
    step, path = checkpoint.checkpoint_step, checkpoint.checkpoint_path
    # A file that is overwritten by each save holds the newest checkpoint only.
    for earlier in [key for key, known in session.checkpoints.items() if known.checkpoint_path == path]:
        _drop(session, earlier)
    session.checkpoints_beside = [each for each in session.checkpoints_beside if each.checkpoint_path != path]
    session.checkpoints_removing = [each for each in session.checkpoints_removing if each.checkpoint_path != path]
    if step in session.checkpoints:
        session.checkpoints_beside.append(session.checkpoints[step])
    if step in session.checkpoints_superseded:
        session.checkpoints_superseded.remove(step)
    session.checkpoints[step] = checkpoint
    session.last_checkpoint_step = step


def _quarantine(session: TrainingSession, event: CheckpointSetAside) -> None:
    _drop(session, event.step)
    session.checkpoints_set_aside.append(
        RefusedCheckpoint(checkpoint_step=event.step, checkpoint_path=event.checkpoint_path, reason=event.reason)
    )
    session.last_checkpoint_step = max(session.checkpoints, default=None)


def _remove(session: TrainingSession, event: CheckpointRemoved) -> None:
    gone = {(each.step, each.checkpoint_path) for each in event.checkpoints}
    known = [*session.checkpoints.values(), *session.checkpoints_beside]
    removed = [each for each in known if (each.checkpoint_step, each.checkpoint_path) in gone]
    losses = [each.metrics.loss for each in removed if each.metrics and math.isfinite(each.metrics.loss)]
    if session.lowest_loss_removed is not None:
        losses.append(session.lowest_loss_removed)
    session.lowest_loss_removed = min(losses, default=None)
    for each in removed:
        if session.checkpoints.get(each.checkpoint_step) is each:
            _drop(session, each.checkpoint_step)
    session.checkpoints_beside = [each for each in session.checkpoints_beside if each not in removed]
    session.checkpoints_removing = event.checkpoints


def _drop(session: TrainingSession, step: int) -> None:
    del session.checkpoints[step]
    # Read back from the journals, it would be gone before a later line could supersede it.
    if step in session.checkpoints_superseded:
        session.checkpoints_superseded.remove(step)


def _loss(checkpoint: CheckpointMetadata) -> float:
    return math.nan if checkpoint.metrics is None else checkpoint.metrics.loss
