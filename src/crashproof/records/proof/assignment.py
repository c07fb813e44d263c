"""What a training process is asked to do while a proof is under way."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

__all__ = ["ASSIGNMENT", "LOG", "WITNESS", "Assignment", "Moment", "Stop"]

ASSIGNMENT, WITNESS, LOG = "assignment.json", "witness.jsonl", "output.log"
"""The files of the folder of a start: what is asked, what the tracker saw, what the command printed."""


class Moment(StrEnum):
    """A moment at which a run is killed."""

    MID_EPOCH = "mid_epoch"
    IN_A_SAVE = "in_a_save"
    AFTER_A_RESUME = "after_a_resume"


class Stop(Struct, frozen=True, kw_only=True):
    """Where a process waits to be killed."""

    moment: Moment
    step: int = 0
    """The step after which it waits; in a save, the first step whose save counts."""
    num_updates: int = 0
    """Soon after a resume: the updates after which it waits."""


class Assignment(Struct, frozen=True, kw_only=True):
    """What one start of the command is asked to do."""

    output_dir: str
    """Where the run must lie; a tracker refuses to write any other run."""
    prover: int
    """The process that waits for this one; if it is gone, nobody kills, and the training goes on."""
    stop: Stop | None = None
    """None: train to the end."""
    full_steps: list[int] | None = None
    """The steps at which weights and states are digested; None: at all, as far as that takes no more time than the
    training itself."""
