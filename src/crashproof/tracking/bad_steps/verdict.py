"""The verdict on a training loop's newest step."""

from __future__ import annotations

from msgspec import Struct

from crashproof.errors import BadStep, ConfigError
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.states import BadStepCause, OnBadStep
from crashproof.rules.bad_steps.finding import BadStepFinding, data_in_words

__all__ = ["StepVerdict", "bad_step_error", "stops_at_bad_steps"]


class StepVerdict(Struct, frozen=True, kw_only=True):
    """Whether a step is bad, and where to go back to."""

    step: int | None = None
    """The bad step; if none is bad, the newest one that was looked at, or None if there was none."""
    finding: BadStepFinding | None = None
    """None if no step is bad."""
    checkpoint: CheckpointMetadata | None = None
    """The newest healthy checkpoint before a bad step, as recorded; `get_recovery_checkpoint(before_step=…)` reads
    it back."""

    @property
    def is_bad(self) -> bool:
        """Whether a step is bad."""
        return self.finding is not None

    @property
    def cause(self) -> BadStepCause | None:
        """`non_finite` or `spike`; None if no step is bad."""
        return None if self.finding is None else self.finding.cause

    @property
    def evidence(self) -> str:
        """A sentence on the loss of a bad step, and what is usual; empty if no step is bad."""
        return "" if self.finding is None else self.finding.evidence

    def raise_if_bad(self) -> None:
        """Stop a training loop at a bad step.

        Raises:
            BadStep: names the step, its loss, what is usual, its samples, and the checkpoint to go back to.
        """
        if self.finding is not None:
            raise bad_step_error(self.finding, self.checkpoint)


def bad_step_error(finding: BadStepFinding, checkpoint: CheckpointMetadata | None, *, hint: str = "") -> BadStep:
    """The error that ends a run at a bad step; by default it hints at what any training loop can do."""
    return BadStep(
        finding.evidence,
        step=finding.step,
        data=data_in_words(finding.data),
        checkpoint=None if checkpoint is None else checkpoint.checkpoint_path,
        hint=hint,
    )


def stops_at_bad_steps(on_bad_step: str | None) -> bool:
    """Whether an adapter is to stop at bad steps: it cannot undo a step of its framework.

    Raises:
        ConfigError: something else is asked for.
    """
    if on_bad_step not in (None, OnBadStep.STOP):
        raise ConfigError(
            f"on_bad_step must be 'stop' or None here, got {on_bad_step!r}.",
            hint="The trainers of crashproof can also skip the update, or roll back.",
        )
    return on_bad_step is not None
