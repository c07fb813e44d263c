"""Compare runs step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from crashproof.rules.proof.observations import Difference, Life, StepSeen, difference_of
from crashproof.rules.proof.random_stream import generators_in_use
from crashproof.rules.proof.roles import DECISIVE, Role, role_of

__all__ = ["by_step", "first_difference", "idle_generators", "unstable_names"]


def by_step(lives: Iterable[Life]) -> dict[int, StepSeen]:
    """What the newest life that computed it saw of each step."""
    return {each.step: each for life in lives for each in life.steps}


def first_difference(
    lives: Sequence[Life], control: Mapping[int, StepSeen], passed_over: frozenset[str]
) -> Difference | None:
    """The first step, in the order of computing, that differs from the uninterrupted run; None if none does."""
    for life in lives:
        for found in life.steps:
            expected = control.get(found.step)
            if expected is None:
                continue
            names = difference_of(expected, found, passed_over)
            if names:
                return Difference(life=life, step=found.step, names=names, expected=expected, found=found)
    return None


def unstable_names(first: Mapping[int, StepSeen], second: Mapping[int, StepSeen]) -> frozenset[str]:
    """What differs between two uninterrupted runs and decides nothing by itself: it is passed over."""
    names = {
        name
        for step in first.keys() & second.keys()
        for name in difference_of(first[step], second[step], frozenset())
    }
    return frozenset(name for name in names if role_of(name) not in DECISIVE)


def idle_generators(control: Mapping[int, StepSeen]) -> frozenset[str]:
    """The random generators that the training never draws from: where they stand makes no difference."""
    names = {name for each in control.values() for name in each.values if role_of(name) is Role.RANDOM}
    return frozenset(names) - generators_in_use(control, frozenset(names))
