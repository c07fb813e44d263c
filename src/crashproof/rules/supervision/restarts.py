"""Whether to restart a supervised command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crashproof.records.supervision import Action, EndCause
from crashproof.rules.supervision.ends import END_EXIT_CODES

__all__ = ["Decision", "Life", "RestartRules", "decide", "lives_in_vain"]

_NEVER = {
    EndCause.PREEMPTION: "it was asked to stop; start the same command again",
    EndCause.ENDED_EARLY: "the command ended well before the run's last step, and would again",
}
_LONG_SECONDS = 3600.0
"""A command whose progress cannot be seen has made some if it lived for this long."""
_VOLATILE = re.compile(r"0x[0-9a-fA-F]+|\b\d{4,}\b")
"""Addresses, process ids and times: they differ in one error raised twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One process life, as far as its end decides on the next one."""

    cause: EndCause
    details: str
    exit_code: int | None
    step: int | None
    """Optimizer steps done at its end; None if the command has no run."""
    verified_before: int | None
    """Progress that cannot be lost any more: the step of the newest checkpoint, or answers of a job."""
    verified_after: int | None
    seconds: float
    """How long it lived."""
    resumed_from: tuple[str, float] | None = None
    """Path and moment of the checkpoint that it resumed from; None if it was none, or is unknown."""
    made_step: bool = True
    """Whether it completed a step, or opened no run that could tell."""
    is_new_trial: bool = False
    """Whether something is different for the next life: a suspect checkpoint is passed over."""

    @property
    def made_progress(self) -> bool:
        """Whether a restart goes on from a later step than this life did."""
        if self.verified_after is None:
            return self.seconds >= _LONG_SECONDS
        return self.verified_after > (self.verified_before or 0)

    @property
    def signature(self) -> tuple[EndCause, str, int | None, int | None]:
        """What two equal failures have in common."""
        return self.cause, _VOLATILE.sub("…", self.details), self.exit_code, self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRules:
    """Limits of restarting."""

    max_restarts: int = 5
    """Restarts in a row without progress."""
    same_failures: int = 3
    """Equal failures at one step in a row."""
    codes: frozenset[int] | None = None
    """Exit codes that restart; None: all but 0, 2, 126 and 127."""

    def restarts_on(self, exit_code: int) -> bool:
        """Whether an exit code restarts."""
        return exit_code not in END_EXIT_CODES if self.codes is None else exit_code in self.codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do after an end."""

    action: Action
    reason: str
    has_given_up: bool = False
    """Whether a restart was due, and a limit was reached."""


def decide(lives: Sequence[Life], rules: RestartRules) -> Decision:
    """Decide on the next life; `lives` are those of this supervisor, the newest last."""
    newest = lives[-1]
    if newest.cause == EndCause.COMPLETED:
        return Decision(action=Action.FINISH, reason="the command ended well")
    if newest.cause in _NEVER:
        return Decision(action=Action.STOP, reason=_NEVER[newest.cause])
    if newest.exit_code is not None and not rules.restarts_on(newest.exit_code):
        return Decision(action=Action.STOP, reason=f"exit code {newest.exit_code} is not one to restart on")
    in_vain, equal = lives_in_vain(lives), _equal_at_the_end(lives)
    if equal >= rules.same_failures:
        return _give_up(f"{equal} lives in a row ended in the same way{_place(newest)}: {newest.details}")
    if len(in_vain) > rules.max_restarts:
        return _give_up(f"{len(in_vain)} lives in a row made no progress that a restart would go on from")
    if not in_vain:
        return Decision(action=Action.RESTART, reason="it has made progress since its start")
    return Decision(action=Action.RESTART, reason=f"restart {len(in_vain)} of {rules.max_restarts} without progress")


def lives_in_vain(lives: Sequence[Life]) -> list[Life]:
    """The newest lives without progress, since the last one that made some, or since something was changed."""
    found: list[Life] = []
    for each in reversed(lives):
        if each.made_progress or (found and each.is_new_trial):
            break
        found.insert(0, each)
    return found


def _equal_at_the_end(lives: Sequence[Life]) -> int:
    count = 0
    for each in reversed(lives):
        if each.signature != lives[-1].signature or (count and each.is_new_trial):
            break
        count += 1
    return count


def _place(life: Life) -> str:
    return "" if life.step is None else f" at step {life.step:,}"


def _give_up(reason: str) -> Decision:
    return Decision(action=Action.STOP, reason=reason, has_given_up=True)
