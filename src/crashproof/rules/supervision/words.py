"""What supervisors have recorded, in words."""

from __future__ import annotations

from collections.abc import Iterator

from crashproof.formatting import as_duration
from crashproof.records.supervision import Action, EndCause, Supervision

__all__ = ["supervision_in_words"]

_UNREMARKABLE = frozenset({EndCause.COMPLETED})
_ACTIONS = {Action.RESTART: "restarted", Action.FINISH: "finished", Action.STOP: "not restarted"}


def supervision_in_words(supervision: Supervision) -> list[str]:
    """Restarts, causes, what they cost, and the newest end; empty if no process ended badly."""
    causes = {name: count for name, count in supervision.ends.items() if name not in _UNREMARKABLE}
    if not causes:
        return []
    found = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(causes.items()))
    restarts = f"{supervision.restarts:,} restart{'' if supervision.restarts == 1 else 's'}"
    return ["; ".join([f"{restarts}: {found}", *_costs(supervision)]), *_newest(supervision)]


def _costs(supervision: Supervision) -> Iterator[str]:
    if supervision.lost_seconds:
        yield f"{as_duration(supervision.lost_seconds)} of training lost"
    if supervision.hung_seconds:
        yield f"{as_duration(supervision.hung_seconds)} hung"
    if supervision.notices:
        yield f"{supervision.notices_saved:,} of {supervision.notices:,} requests to stop led to a checkpoint"


def _newest(supervision: Supervision) -> Iterator[str]:
    newest = supervision.newest
    if newest is None or newest.cause in _UNREMARKABLE:
        return
    stacks = f"; stacks in {newest.stacks}" if newest.stacks else ""
    action = _ACTIONS.get(newest.action, newest.action)
    yield f"newest: {newest.cause.replace('_', ' ')}: {newest.details}; {action}: {newest.reason}{stacks}"
