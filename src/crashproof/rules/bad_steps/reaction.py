"""What is done about a bad step.

Whether the data, the hardware or the model is at fault shows when a step is computed again from the same state: a
loss that is bad again comes from the samples (or from a model that cannot take them), so they are left out; one that
is fine comes from a passing fault of the hardware. What the journal has of earlier lives counts, so it does not
matter at which moment a run was killed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from crashproof.records.bad_steps import BadStepRecord, DataWindow
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.records.states import BadStepAction, OnBadStep

__all__ = ["choose_action", "first_step_without_data", "healthy_losses", "is_bad_at", "seen_before"]


def choose_action(
    step: int, data: Sequence[DataWindow], earlier: Sequence[BadStepRecord], *, policy: OnBadStep, most: int
) -> BadStepAction:
    """What to do about a bad step.

    Args:
        step: The step.
        data: Its samples.
        earlier: What is on record of bad steps of this run.
        policy: What the user chose.
        most: Bad steps that the run may have, of which those at one step from the same samples count as one.
    """
    if policy == OnBadStep.STOP or _num_with(step, data, earlier) > most:
        return BadStepAction.STOPPED
    if policy == OnBadStep.SKIP:
        return BadStepAction.SKIPPED_UPDATE
    return BadStepAction.ROLLED_BACK if seen_before(step, data, earlier) is None else BadStepAction.SKIPPED_DATA


def seen_before(step: int, data: Sequence[DataWindow], earlier: Sequence[BadStepRecord]) -> BadStepRecord | None:
    """The newest record of the same step from the same samples, unless it was fine when it was computed again."""
    newest = next((each for each in reversed(earlier) if each.step == step and each.data == list(data)), None)
    return None if newest is None or newest.is_transient else newest


def healthy_losses(session: TrainingSession, *, up_to_step: int) -> list[tuple[int, float]]:
    """Steps and losses of the history, the oldest first, without those that are known to be bad."""
    bad = {_identity(each.step, each.loss) for each in session.bad_steps}
    return [
        (line.step, line.loss)
        for line in session.metrics_history
        if line.step <= up_to_step and math.isfinite(line.loss) and _identity(line.step, line.loss) not in bad
    ]


def is_bad_at(session: TrainingSession, update: MetricsSnapshot | None) -> bool:
    """Whether a bad step has led to the weights of an update, as far as the run knows."""
    if update is None:
        return False
    known = _found_at(session, update)
    return known is not None and known.action != BadStepAction.SKIPPED_UPDATE


def first_step_without_data(session: TrainingSession) -> int | None:
    """The first step of the history that has other samples when it is computed again; None if all have the same."""
    found = [(line.step, _found_at(session, line)) for line in session.metrics_history]
    return next((step for step, bad in found if bad is not None and bad.action == BadStepAction.SKIPPED_DATA), None)


def _found_at(session: TrainingSession, update: MetricsSnapshot) -> BadStepRecord | None:
    """The newest record of this very update: a step that is computed again has another loss, or is bad again."""
    own = _identity(update.step, update.loss)
    return next((each for each in reversed(session.bad_steps) if _identity(each.step, each.loss) == own), None)


def _identity(step: int, loss: float | None) -> tuple[int, float | None]:
    return step, loss if loss is not None and math.isfinite(loss) else None


def _num_with(step: int, data: Sequence[DataWindow], earlier: Iterable[BadStepRecord]) -> int:
    return len({_place(each.step, each.data) for each in earlier} | {_place(step, data)})


def _place(step: int, data: Iterable[DataWindow]) -> tuple[int, tuple[DataWindow, ...]]:
    return step, tuple(data)
