"""Which part of a training a named value belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

__all__ = ["DECISIVE", "Role", "names_of", "role_of", "roles_of"]


class Role(StrEnum):
    """A part of a training that a resume has to restore, or a result of it."""

    BATCH = "batch"
    LEARNING_RATE = "learning rate"
    RANDOM = "random state"
    COUNTS = "counts of samples and tokens"
    LOSS = "loss"
    COMPONENTS = "components of the loss"
    SCALER = "gradient scaler"
    OPTIMIZER = "optimizer"
    SCHEDULER = "scheduler"
    AVERAGE = "average of the weights"
    WEIGHTS = "weights"
    OTHER = "other state"


DECISIVE = frozenset(Role) - {Role.COMPONENTS, Role.RANDOM, Role.OTHER}
"""Where these differ between two uninterrupted runs, no resume can be told from chance; a component may be a time."""

_EXACT = {
    "batch": Role.BATCH,
    "learning_rate": Role.LEARNING_RATE,
    "loss": Role.LOSS,
    "samples_processed": Role.COUNTS,
    "tokens_processed": Role.COUNTS,
}
_WORDS = (
    (Role.COMPONENTS, {"loss_components"}),
    (Role.RANDOM, {"generator", "random", "rng"}),
    (Role.AVERAGE, {"average", "averaged", "avg", "ema", "shadow", "swa"}),
    (Role.SCALER, {"scaler"}),
    (Role.SCHEDULER, {"schedule", "scheduler", "schedulers", "schedules"}),
    (Role.OPTIMIZER, {"momentum", "optim", "optimizer", "optimizers"}),
    (Role.WEIGHTS, {"adapter", "model", "models", "module", "net", "network", "student", "weight", "weights"}),
)
"""By a word of the first part of the name that has one."""
_RATES = {"_last_lr", "initial_lr", "lr"}
_WORD = re.compile(r"[a-z]+(?:_components)?")


def role_of(name: str) -> Role:
    """The role of a dotted name: `optimizer.state.0.exp_avg` belongs to the optimizer."""
    if name in _EXACT:
        return _EXACT[name]
    parts = name.lower().split(".")
    # A rate in a list is followed by its place.
    if {*parts[-2:]} & _RATES:
        return Role.LEARNING_RATE
    for part in parts:
        words = {*_WORD.findall(part), *part.split("_"), part}
        for role, of_role in _WORDS:
            if words & of_role:
                return role
    return Role.OTHER


def roles_of(names: Iterable[str]) -> frozenset[Role]:
    """The roles of several names."""
    return frozenset(map(role_of, names))


def names_of(role: Role, names: Iterable[str]) -> list[str]:
    """Those of the names that have a role."""
    return [name for name in names if role_of(name) is role]
