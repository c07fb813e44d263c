"""Which checkpoints to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct, structs

from crashproof.errors import ConfigError
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog, is_healthy

__all__ = ["ADOPTED", "KeepBest", "KeepEvery", "KeepLatest", "KeepMilestones", "RetentionRule", "stale_checkpoints"]

ADOPTED = "adopted"
"""The tag of checkpoints that other code wrote and `crashproof adopt` recorded; they are never removed."""


class RetentionRule:
    """Decides which checkpoints to keep; two rules combined by `|` keep what either of them keeps."""

    __slots__ = ()

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        """The steps of the checkpoints to keep; each rule has its own."""
        raise NotImplementedError

    def __or__(self, other: RetentionRule) -> RetentionRule:
        return _KeepAny((self, other))


class KeepLatest(RetentionRule, Struct, frozen=True):
    """Keep the newest checkpoints."""

    count: int

    def __post_init__(self) -> None:
        _require_positive(self, self.count)

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        """The highest steps."""
        return set(sorted({each.checkpoint_step for each in checkpoints})[-self.count :])


class KeepBest(RetentionRule, Struct, frozen=True):
    """Keep the best checkpoints by a number that was reported at their step."""

    count: int
    by: str = "loss"
    """`loss`, a result of the evaluation at the checkpoint's step, or a component of the loss."""
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, self.count)

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        """The steps with the best number, of equal ones the earlier; one without it, or with NaN, is never best."""
        sign = -1.0 if self.higher_is_better else 1.0
        ranked = sorted(
            {
                (sign * value, each.checkpoint_step)
                for each in checkpoints
                if not math.isnan(value := _number(each, self.by))
            }
        )
        return {step for _, step in ranked[: self.count]}


class KeepEvery(RetentionRule, Struct, frozen=True):
    """Keep the checkpoints at multiples of a number of steps."""

    steps: int

    def __post_init__(self) -> None:
        _require_positive(self, self.steps)

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        """The multiples."""
        return {each.checkpoint_step for each in checkpoints if each.checkpoint_step % self.steps == 0}


class KeepMilestones(RetentionRule, Struct, frozen=True):
    """Keep the checkpoints at the given steps."""

    steps: Iterable[int]

    def __post_init__(self) -> None:
        # A generator would be empty at the second call.
        structs.force_setattr(self, "steps", frozenset(self.steps))

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        """The given steps that have a checkpoint."""
        return {each.checkpoint_step for each in checkpoints} & set(self.steps)


class _KeepAny(RetentionRule, Struct, frozen=True):
    rules: tuple[RetentionRule, ...]

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        known = list(checkpoints)
        return {step for rule in self.rules for step in rule.choose(known)}


def stale_checkpoints(session: TrainingSession, rule: RetentionRule) -> list[CheckpointMetadata]:
    """The checkpoints of a session that a rule does not keep, oldest first; the newest is never among them.

    The rule only sees checkpoints that are not superseded; superseded ones stay until training has passed their step
    again. Adopted ones always stay.
    """
    catalog = CheckpointCatalog(session)
    standing = catalog.standing()
    if not standing:
        return []
    newest = max(each.checkpoint_step for each in standing)
    # Where the newest ones were taken while the loss was bad, a restart needs the one before them.
    newest_healthy = max((each.checkpoint_step for each in standing if is_healthy(each)), default=newest)
    kept = rule.choose(standing) | {newest, newest_healthy}
    return [
        each
        for each in catalog.all()
        if each.checkpoint_step < newest
        and ADOPTED not in each.recovery_tags
        and (each.checkpoint_step not in kept or catalog.is_abandoned(each))
    ]


def _number(checkpoint: CheckpointMetadata, name: str) -> float:
    metrics = checkpoint.metrics
    if name == "loss":
        return math.nan if metrics is None else metrics.loss
    components = {} if metrics is None else metrics.loss_components
    return (components | (checkpoint.evaluation or {})).get(name, math.nan)


def _require_positive(rule: RetentionRule, count: int) -> None:
    if count < 1:
        raise ConfigError(
            f"{type(rule).__name__} needs a number of at least 1, got {count}.",
            hint="Pass a positive number, or leave the rule out.",
        )
