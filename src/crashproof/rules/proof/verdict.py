"""Whether a resumed run is the uninterrupted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from crashproof.rules.proof.causes import Cause
from crashproof.rules.proof.comparison import by_step, first_difference, idle_generators, unstable_names
from crashproof.rules.proof.data_stream import DataStream
from crashproof.rules.proof.naming import Evidence, Named, name_cause, name_irregularity, name_state
from crashproof.rules.proof.observations import Difference, Life, StepSeen
from crashproof.rules.proof.roles import Role, role_of

__all__ = ["Contents", "Finding", "Verdict", "judge_checkpoints", "judge_control", "judge_lives", "passed_over"]

Contents = Mapping[int, Mapping[str, str]]
"""Digests of what is in the checkpoints, by step and name."""
_OF_CHECKPOINTS = frozenset(Role) - {Role.RANDOM}
"""Random states are compared step by step, where it is known which of them are in use."""


class Verdict(StrEnum):
    """What a proof has shown."""

    EXACT = "exact"
    NOT_EXACT = "not_exact"
    NOT_DETERMINISTIC = "not_deterministic"
    NOT_PROVABLE = "not_provable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The first thing that is wrong."""

    verdict: Verdict
    named: Named
    step: int
    """The first step that differs."""
    resume: int | None = None
    """The number of the resume before it; None: there was none."""
    values: tuple[tuple[str, str, str], ...] = ()
    """Name, expected and found, of what differs."""


def judge_control(first: Life, second: Life) -> Finding | None:
    """Whether two uninterrupted runs differ in anything that counts; None if they do not."""
    control, again = by_step([first]), by_step([second])
    data = DataStream.of(first.steps)
    difference = first_difference([second], control, unstable_names(control, again))
    if difference is not None:
        # The random states tell why, though they decide nothing.
        full = first_difference([second], control, idle_generators(control)) or difference
        named = name_irregularity(Evidence(difference=full, control=control, data=data))
        return _finding(Verdict.NOT_DETERMINISTIC, named, difference, resume=None)
    if first.steps[-1].step != second.steps[-1].step:
        step = min(first.steps[-1].step, second.steps[-1].step)
        named = Named(cause=Cause.NOT_REPEATABLE, component=Role.COUNTS, detail=_lengths(first, second))
        return Finding(verdict=Verdict.NOT_DETERMINISTIC, named=named, step=step)
    return None


def passed_over(first: Life, second: Life) -> frozenset[str]:
    """What is not compared: what two uninterrupted runs have differently, and generators that nothing draws from."""
    control = by_step([first])
    return unstable_names(control, by_step([second])) | idle_generators(control)


def judge_lives(
    lives: Sequence[Life], control: Life, saves: Sequence[int], ignored: frozenset[str]
) -> Finding | None:
    """What is wrong first with a run that was killed and resumed; None if nothing is.

    `saves` has, for each life, the newest step that was saved when it began; 0 if none was.
    """
    known = by_step([control])
    data = DataStream.of(control.steps)
    for place, life in enumerate(lives):
        finding = _judge_start(lives, place, control, saves[place])
        if finding is not None:
            return finding
        difference = first_difference([life], known, ignored)
        if difference is not None and not place:
            # Nothing was killed before it.
            named = name_irregularity(Evidence(difference=difference, control=known, data=data))
            return _finding(Verdict.NOT_DETERMINISTIC, named, difference, resume=None)
        if difference is not None:
            named = name_cause(Evidence(difference=difference, control=known, data=data))
            return _finding(Verdict.NOT_EXACT, named, difference, resume=life.number - 1)
    return _judge_length(lives[-1], control)


def judge_checkpoints(first: Contents, second: Contents, resumed: Contents) -> Finding | None:
    """What is different in the checkpoints of a resumed run; None if nothing is."""
    unstable = {name for step in first.keys() & second.keys() for name in _unequal(first[step], second[step])}
    for step in sorted(first.keys() & resumed.keys()):
        names = tuple(
            name
            for name in sorted(_unequal(first[step], resumed[step]) - unstable)
            if role_of(name) in _OF_CHECKPOINTS
        )
        if names:
            values = tuple((name, first[step][name], resumed[step][name]) for name in names)
            return Finding(verdict=Verdict.NOT_EXACT, named=name_state(names), step=step, values=values)
    return None


def _judge_start(lives: Sequence[Life], place: int, control: Life, saved: int) -> Finding | None:
    life = lives[place]
    if not place:
        return None
    if saved and life.first_step <= control.first_step < saved:
        named = Named(cause=Cause.STARTS_FROM_ZERO, component=Role.COUNTS, detail=f"Step {saved} was saved.")
        return Finding(verdict=Verdict.NOT_EXACT, named=named, step=life.first_step, resume=life.number - 1)
    before = max(each.steps[-1].step for each in lives[:place])
    if life.first_step > before + 1:
        named = Named(
            cause=Cause.STEPS_MISSING,
            component=Role.COUNTS,
            detail=f"Steps {before + 1} to {life.first_step - 1} were computed by no start.",
        )
        return Finding(verdict=Verdict.NOT_EXACT, named=named, step=before + 1, resume=life.number - 1)
    return None


def _judge_length(last: Life, control: Life) -> Finding | None:
    if last.steps[-1].step == control.steps[-1].step:
        return None
    named = Named(cause=Cause.LENGTH, component=Role.COUNTS, detail=_lengths(control, last))
    step = min(last.steps[-1].step, control.steps[-1].step)
    return Finding(verdict=Verdict.NOT_EXACT, named=named, step=step, resume=last.number - 1)


def _finding(verdict: Verdict, named: Named, difference: Difference, *, resume: int | None) -> Finding:
    values = tuple(
        (name, difference.expected.values[name], difference.found.values[name])
        for name in difference.names
        if name in difference.found.values
    )
    if difference.expected.samples != difference.found.samples:
        values = (("batch", _shown(difference.expected), _shown(difference.found)), *values)
    return Finding(verdict=verdict, named=named, step=difference.step, resume=resume, values=values)


def _shown(step: StepSeen) -> str:
    return " ".join(step.samples or ("not shown",))


def _unequal(first: Mapping[str, str], second: Mapping[str, str]) -> set[str]:
    return {name for name in first.keys() & second.keys() if first[name] != second[name]}


def _lengths(first: Life, second: Life) -> str:
    return f"One ended at step {first.steps[-1].step:,}, the other at step {second.steps[-1].step:,}."
