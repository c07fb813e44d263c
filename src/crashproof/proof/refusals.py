"""Why nothing can be proved of a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crashproof.proof.starting import Start
from crashproof.records.proof.witness import Refused, RunOpened, Seen

__all__ = ["NotProvable", "Reason", "require_usable_control"]

_PREEMPTED = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What keeps a command from being proved."""

    cause: str
    sentence: str
    to_do: str
    output_tail: Sequence[str] = ()


class NotProvable(Exception):
    """Nothing can be proved; carries the reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.sentence)
        self.reason = reason


def require_usable_control(start: Start, *, earlier_ended_well: bool) -> None:
    """Make sure that an uninterrupted start has trained a run in the proof's folder.

    Raises:
        NotProvable: it has not; says why.
    """
    reason = _reason_against(start, earlier_ended_well=earlier_ended_well)
    if reason is not None:
        raise NotProvable(reason)


def _reason_against(start: Start, *, earlier_ended_well: bool) -> Reason | None:
    outside = next((each.progress for each in start.lines if isinstance(each, Refused)), None)
    if outside is not None:
        return Reason(
            cause="ignores_the_folder",
            sentence=f"the command writes its run to {outside}, not into the folder that stands for {{output_dir}}",
            to_do="Pass that folder on to the tracker; nothing was written to the other one.",
            output_tail=start.output_tail,
        )
    if start.return_code:
        return _failed(start, earlier_ended_well=earlier_ended_well)
    if not any(isinstance(each, RunOpened) for each in start.lines):
        return Reason(
            cause="no_tracker",
            sentence="the command ended well, and opened no run: it does not use the tracker",
            to_do="Add the tracker's lines to the training loop, or an adapter for its framework; "
            "docs/TRAINING_INTEGRATION_EXAMPLES.md has both.",
            output_tail=start.output_tail,
        )
    if not any(isinstance(each, Seen) for each in start.lines):
        return Reason(
            cause="no_steps",
            sentence="the command opened a run, and reported no step",
            to_do="Call update_metrics after every optimizer step.",
            output_tail=start.output_tail,
        )
    return None


def _failed(start: Start, *, earlier_ended_well: bool) -> Reason:
    how = f"signal {-start.return_code}" if start.return_code < 0 else f"exit code {start.return_code}"
    if earlier_ended_well:
        return Reason(
            cause="fails_at_times",
            sentence=f"the command fails at times: uninterrupted, it ended well once, and once with {how}",
            to_do="Find out what it fails of (its last lines are below), and prove again.",
            output_tail=start.output_tail,
        )
    stopped = " It asks to be started again, as after a preemption." if start.return_code == _PREEMPTED else ""
    return Reason(
        cause="fails",
        sentence=f"the command fails by itself, before anything was killed ({how}).{stopped}".rstrip("."),
        to_do="Make it run to its end first; its last lines are below.",
        output_tail=start.output_tail,
    )
