"""Let all processes of a run succeed together, or end together with one reason."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from crashproof.errors import CrashproofError, RankFailed, RankLost, RanksDisagree
from crashproof.pytorch.exit_codes import exit_code_of
from crashproof.pytorch.interrupts import StopRequested
from crashproof.pytorch.ranks import Ranks
from crashproof.rules.agreement.verdict import as_sentence
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["all_or_none", "require_same"]


@contextmanager
def all_or_none(ranks: Ranks, what: str) -> Iterator[None]:
    """Work that every process does alone: where it fails on one, it fails on all. `what` names the activity.

    It must be no collective operation: a process that fails takes no part in those of the others.

    Raises:
        RankFailed: It failed on another process; says why.
        RankLost: Another process died, or did not respond within the limit.
    """
    own: Exception | None = None
    try:
        yield
    except RankLost:
        # The others are not there to be told.
        raise
    except Exception as error:
        own = error
    try:
        failures = ranks.all_gather(_as_record(own), what)
    except RankLost:
        if own is None:
            raise
        failures = []
    if own is not None:
        raise own
    for rank, failure in enumerate(failures):
        if failure is not None:
            reason, exit_code = failure
            raise RankFailed(rank, what=what, reason=reason, exit_code=exit_code)


def require_same(ranks: Ranks, description: Mapping[str, str], *, what: str, hint: str) -> None:
    """Make sure that a description is the same on all processes; `what` names what is described.

    Raises:
        RanksDisagree: It is not; names what differs, the values and the ranks.
        RankLost: Another process died, or did not respond within the limit.
    """
    members = ranks.all_gather((socket.gethostname(), dict(description)), f"comparing {what}")
    sentence = as_sentence([each for _, each in members], [host for host, _ in members])
    if sentence:
        raise RanksDisagree(f"The processes of this run do not have the same {what}: {sentence}.", hint=hint)


def _as_record(failure: Exception | None) -> tuple[str, int] | None:
    """The reason of a failure, and the exit code of the process that it ends."""
    if failure is None:
        return None
    if isinstance(failure, StopRequested):
        return f"it was asked to stop ({failure}).", exit_code_of(failure)
    reason = without_secrets(str(failure))
    is_reported = isinstance(failure, CrashproofError)
    return reason if is_reported else f"{type(failure).__name__}: {reason}", exit_code_of(failure)
