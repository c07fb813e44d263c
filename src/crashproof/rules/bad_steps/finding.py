"""A step that was found bad, in data and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

from crashproof.records.bad_steps import BadStepRecord, DataWindow
from crashproof.records.states import BadStepAction, BadStepCause
from crashproof.rules.bad_steps.usual_losses import Limit, UsualLosses, cause_of

__all__ = ["BadStepFinding", "counts_in_words", "data_in_words", "judge_step", "record_in_words"]

_DONE = {
    BadStepAction.REPORTED: "the training loop was told",
    BadStepAction.STOPPED: "the run was stopped",
    BadStepAction.SKIPPED_UPDATE: "the weights were left as they were",
    BadStepAction.ROLLED_BACK: "training went back to a checkpoint, to compute it again",
    BadStepAction.SKIPPED_DATA: "training went back to a checkpoint, and leaves these samples out",
}


class BadStepFinding(Struct, frozen=True, kw_only=True):
    """Which step is bad, and why."""

    step: int
    cause: BadStepCause
    loss: float
    limit: Limit | None
    """What it was compared with; None if there were too few healthy losses to tell a spike."""
    data: tuple[DataWindow, ...]
    """The samples that it was computed from."""

    @property
    def finite_loss(self) -> float | None:
        """Its loss as a record has it: None if it is not finite."""
        return self.loss if math.isfinite(self.loss) else None

    @property
    def evidence(self) -> str:
        """A sentence: the loss, and what is usual."""
        return _evidence(self.step, self.loss, self.limit)


def judge_step(step: int, loss: float, data: Iterable[DataWindow], usual: UsualLosses) -> BadStepFinding | None:
    """What is bad about a step; None if its loss is healthy: then it is learned from."""
    limit = usual.limit_at(step)
    cause = cause_of(loss, limit)
    if cause is None:
        usual.add(step, loss)
        return None
    return BadStepFinding(step=step, cause=cause, loss=loss, limit=limit, data=tuple(data))


def data_in_words(data: Sequence[DataWindow]) -> str:
    """`samples 4,800 to 4,831 of the order`; positions are counted from 0."""
    if not data:
        return "unknown samples"
    windows = ", ".join(f"{each.first:,} to {each.end - 1:,}" for each in data)
    return f"samples {windows} of the order"


def record_in_words(record: BadStepRecord) -> str:
    """One line on a bad step: its loss, what is usual, its samples, and what was done."""
    loss = math.nan if record.loss is None else record.loss
    limit = None
    if record.limit is not None and record.usual is not None:
        limit = Limit(loss=record.limit, usual=record.usual, num_losses=record.num_losses)
    done = "fine when it was computed again: a passing fault" if record.is_transient else _DONE[record.action]
    return f"{_evidence(record.step, loss, limit).rstrip('.')} ({data_in_words(record.data)}); {done}"


def counts_in_words(*, found: int, rollbacks: int, left_out: int) -> str:
    """How many bad steps there were, and what they cost, such as `2 found, 2 rollbacks, 8 samples left out`."""
    words = [f"{found:,} found"]
    if rollbacks:
        words.append(f"{rollbacks:,} rollback{'s' if rollbacks > 1 else ''}")
    if left_out:
        words.append(f"{left_out:,} sample{'s' if left_out > 1 else ''} left out")
    return ", ".join(words)


def _evidence(step: int, loss: float, limit: Limit | None) -> str:
    found = (
        f"step {step:,} has a loss of {loss:.6g}" if math.isfinite(loss) else f"step {step:,} has a non-finite loss"
    )
    if limit is None:
        return f"{found}."
    return (
        f"{found}; the {limit.num_losses:,} healthy losses before it are about {limit.usual:.6g}, and up to "
        f"{limit.loss:.6g} would have passed."
    )
