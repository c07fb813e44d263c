"""Name the cause of the first difference.

A resume restores weights, states, random generators and the place in the data; then a step takes a batch, has a loss,
and updates. What differs first in that order is the cause, and what differs with it follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from crashproof.rules.proof.causes import Cause
from crashproof.rules.proof.data_stream import DataStream, Place
from crashproof.rules.proof.observations import Difference, StepSeen
from crashproof.rules.proof.random_stream import Draws, draws_of
from crashproof.rules.proof.roles import Role, names_of, roles_of

__all__ = ["Evidence", "Named", "name_cause", "name_irregularity", "name_state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A cause, and what shows it."""

    cause: Cause
    component: Role
    """What differed first."""
    detail: str = ""
    """What else is known, as a sentence; empty if nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A difference, and what it is compared with."""

    difference: Difference
    control: Mapping[int, StepSeen]
    data: DataStream

    def roles(self) -> frozenset[Role]:
        """What differs."""
        return roles_of(self.difference.names)

    def is_shown(self, role: Role) -> bool:
        """Whether the resumed run has shown such a part at that step."""
        found = self.difference.found
        return found.samples is not None if role is Role.BATCH else role in roles_of(found.values)


def name_cause(evidence: Evidence) -> Named:
    """What is wrong with the resume before the first difference."""
    roles = evidence.roles()
    named = next((rule(evidence) for role, rule in _IN_ORDER if role in roles), None)
    if named is None:
        detail = _in_words(evidence.difference.names)
        named = Named(cause=Cause.OTHER_STATE, component=Role.OTHER, detail=detail)
    if evidence.difference.life.number > _SECOND_LIFE and named.cause in _OF_ANY_RESUME:
        return Named(cause=Cause.SECOND_RESUME, component=named.component, detail=_first_was_exact(evidence, named))
    return named


def name_state(names: tuple[str, ...]) -> Named:
    """What is wrong where only the contents of two checkpoints are known."""
    roles = roles_of(names)
    return next(
        (
            Named(cause=cause, component=role, detail=_in_words(names_of(role, names)))
            for role, cause in _OF_STATES
            if role in roles
        ),
        Named(cause=Cause.OTHER_STATE, component=Role.OTHER, detail=_in_words(names)),
    )


def name_irregularity(evidence: Evidence) -> Named:
    """Why two uninterrupted runs differ."""
    roles = evidence.roles()
    if Role.BATCH in roles:
        return Named(cause=Cause.SHUFFLE_NOT_SEEDED, component=Role.BATCH)
    if Role.RANDOM in roles:
        return Named(cause=Cause.UNSEEDED, component=Role.RANDOM, detail=_listed(Role.RANDOM, evidence))
    component = next((role for role in Role if role in roles), Role.OTHER)
    return Named(cause=Cause.NOT_REPEATABLE, component=component)


def _name_batch(evidence: Evidence) -> Named:
    difference = evidence.difference
    place = evidence.data.place_of(difference)
    if difference.offset and evidence.data.begins_epoch(difference.step):
        cause = Cause.EPOCH_ORDER
    elif place is Place.NOWHERE:
        return _name_unknown_order(evidence)
    else:
        cause = _OF_PLACES[place]
    return Named(cause=cause, component=Role.BATCH)


def _name_unknown_order(evidence: Evidence) -> Named:
    """The order of the batch is none that the uninterrupted run has; a generator may tell why."""
    found = {draws for draws, _, _ in _draws(evidence)}
    if Draws.BEGAN_AGAIN in found or Draws.BEHIND in found:
        return Named(cause=Cause.RANDOM_NOT_RESTORED, component=Role.RANDOM, detail=_listed(Role.RANDOM, evidence))
    cause = Cause.DATA_BEGIN_AGAIN if Draws.AHEAD in found else Cause.SHUFFLE_NOT_SEEDED
    return Named(cause=cause, component=Role.BATCH)


def _name_rate(evidence: Evidence) -> Named:
    difference, roles = evidence.difference, evidence.roles()
    if Role.OPTIMIZER in roles and Role.LOSS not in roles and not difference.offset:
        # Its moments do not depend on the rate; the rate is kept in it too.
        detail = _listed(Role.OPTIMIZER, evidence)
        return Named(cause=Cause.OPTIMIZER_NOT_RESTORED, component=Role.OPTIMIZER, detail=detail)
    rate = {step: each.values.get("learning_rate") for step, each in evidence.control.items()}
    of_life = {each.step: each.values.get("learning_rate") for each in difference.life.steps}
    following = [step for step in sorted(of_life) if step >= difference.step][:_STEPS_OF_A_RATE]
    ahead = [of_life[step] == rate[step + 1] for step in following if step + 1 in rate]
    if ahead and all(ahead):
        cause = Cause.SCHEDULE_STEPPED_TWICE
    elif all(of_life[step] == rate.get(step - following[0] + min(rate)) for step in following):
        cause = Cause.SCHEDULE_BEGINS_AGAIN
    else:
        cause = Cause.HORIZON
    before, now = rate[difference.step], of_life[difference.step]
    is_of_this_step = before != now
    detail = f"It was {before}, and is {now}." if is_of_this_step else _listed(Role.LEARNING_RATE, evidence)
    return Named(cause=cause, component=Role.LEARNING_RATE, detail=detail)


def _name_random(evidence: Evidence) -> Named:
    for draws, num, name in _draws(evidence):
        if draws is Draws.AHEAD:
            how_many = f" {num} numbers" if num else ""
            detail = f"{name} is{how_many} ahead of where it should be."
            return Named(cause=Cause.EXTRA_DRAWS, component=Role.RANDOM, detail=detail)
    return Named(cause=Cause.RANDOM_NOT_RESTORED, component=Role.RANDOM, detail=_listed(Role.RANDOM, evidence))


def _name_loss(evidence: Evidence) -> Named:
    """The batch, the rate and the generators in use are the same, as far as they are known."""
    if Role.COUNTS in evidence.roles():
        return _name_counts(evidence)
    if not evidence.difference.offset:
        cause = Cause.OTHER_WEIGHTS if evidence.is_shown(Role.BATCH) else Cause.LOSS_ALONE
        return Named(cause=cause, component=Role.LOSS)
    is_second = evidence.difference.offset == 1 and not evidence.is_shown(Role.OPTIMIZER)
    return Named(cause=Cause.UPDATE_DIFFERS if is_second else Cause.LOSS_ALONE, component=Role.LOSS)


def _name_counts(evidence: Evidence) -> Named:
    """Samples are counted otherwise; by less than a step's, if some of the step's were lost."""
    step = evidence.difference.step
    before = evidence.control.get(step - 1)
    expected, found = (_count(each) for each in (evidence.difference.expected, evidence.difference.found))
    of_step = expected - (0 if before is None else _count(before))
    is_loss_too = Role.LOSS in evidence.roles()
    cause = (
        Cause.MID_ACCUMULATION if is_loss_too and 0 < abs(expected - found) < of_step else Cause.COUNTS_NOT_RESTORED
    )
    return Named(cause=cause, component=Role.COUNTS)


def _name_scheduler(evidence: Evidence) -> Named:
    """The rate of this step is the same; a state that is that of the next step was stepped once more."""
    difference = evidence.difference
    following = evidence.control.get(difference.step + 1)
    names = names_of(Role.SCHEDULER, difference.names)
    if following is not None and all(difference.found.values[name] == following.values.get(name) for name in names):
        return Named(cause=Cause.SCHEDULE_STEPPED_TWICE, component=Role.SCHEDULER)
    is_horizon = all(_HORIZON & {*name.lower().replace("_", ".").split(".")} for name in names)
    cause = Cause.HORIZON if is_horizon else Cause.SCHEDULE_BEGINS_AGAIN
    return Named(cause=cause, component=Role.SCHEDULER, detail=_listed(Role.SCHEDULER, evidence))


def _name_weights(evidence: Evidence) -> Named:
    """Only the weights differ, behind an update of the same loss."""
    is_explained = evidence.is_shown(Role.OPTIMIZER)
    cause = Cause.OTHER_WEIGHTS if is_explained else Cause.UPDATE_DIFFERS
    return Named(cause=cause, component=Role.WEIGHTS, detail=_listed(Role.WEIGHTS, evidence))


def _naming(cause: Cause, role: Role) -> Callable[[Evidence], Named]:
    def name(evidence: Evidence) -> Named:
        return Named(cause=cause, component=role, detail=_listed(role, evidence))

    return name


def _draws(evidence: Evidence) -> list[tuple[Draws, int, str]]:
    names = names_of(Role.RANDOM, evidence.difference.names)
    return [(*draws_of(name, evidence.difference, evidence.control), name) for name in names]


def _count(step: StepSeen) -> int:
    return int(step.values.get("samples_processed", "0"))


def _listed(role: Role, evidence: Evidence) -> str:
    return _in_words(names_of(role, evidence.difference.names))


def _in_words(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"What differs: {', '.join(names[:_MOST_NAMED])}{more}."


def _first_was_exact(evidence: Evidence, named: Named) -> str:
    number = evidence.difference.life.number - 1
    return f"Resume {number} is the first that differs, first in: {named.component}. {named.detail}".strip()


_SECOND_LIFE = 2
_STEPS_OF_A_RATE = 4
_MOST_NAMED = 5
_HORIZON = {"horizon", "iters", "max", "steps", "t", "total"}
"""Words in the names of a schedule's length."""
_OF_PLACES = {
    Place.WITHIN_THE_STEP: Cause.MID_ACCUMULATION,
    Place.A_STEP_BACK: Cause.SAMPLES_REPEATED,
    Place.A_STEP_AHEAD: Cause.SAMPLES_SKIPPED,
    Place.BEGINNING_OF_AN_EPOCH: Cause.DATA_BEGIN_AGAIN,
    Place.SAME_PLACE_OF_ANOTHER_EPOCH: Cause.EPOCH_ORDER,
    Place.ELSEWHERE: Cause.DATA_ELSEWHERE,
}
_OF_STATES = (
    (Role.SCALER, Cause.SCALER_NOT_RESTORED),
    (Role.OPTIMIZER, Cause.OPTIMIZER_NOT_RESTORED),
    (Role.SCHEDULER, Cause.SCHEDULE_BEGINS_AGAIN),
    (Role.AVERAGE, Cause.AVERAGE_FORGOTTEN),
    (Role.WEIGHTS, Cause.OTHER_WEIGHTS),
    (Role.RANDOM, Cause.RANDOM_NOT_RESTORED),
)
_OF_ANY_RESUME = frozenset(
    {
        *(Cause.COUNTS_NOT_RESTORED, Cause.DATA_BEGIN_AGAIN, Cause.DATA_ELSEWHERE, Cause.LOSS_ALONE),
        *(Cause.OTHER_WEIGHTS, Cause.SAMPLES_REPEATED, Cause.SAMPLES_SKIPPED, Cause.SHUFFLE_NOT_SEEDED),
    }
)
"""What the first resume would have had as well, if its place in the run were all that mattered."""
_IN_ORDER: tuple[tuple[Role, Callable[[Evidence], Named]], ...] = (
    (Role.BATCH, _name_batch),
    (Role.LEARNING_RATE, _name_rate),
    (Role.RANDOM, _name_random),
    (Role.LOSS, _name_loss),
    (Role.COMPONENTS, _name_loss),
    (Role.SCALER, _naming(Cause.SCALER_NOT_RESTORED, Role.SCALER)),
    (Role.OPTIMIZER, _naming(Cause.OPTIMIZER_NOT_RESTORED, Role.OPTIMIZER)),
    (Role.SCHEDULER, _name_scheduler),
    (Role.AVERAGE, _naming(Cause.AVERAGE_FORGOTTEN, Role.AVERAGE)),
    (Role.WEIGHTS, _name_weights),
    (Role.COUNTS, _name_counts),
)
"""What differs first in the course of a step comes first."""
