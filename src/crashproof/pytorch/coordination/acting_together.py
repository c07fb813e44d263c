"""Let all ranks act, and fail together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from crashproof.errors import CrashproofError, StorageUnwritable
from crashproof.pytorch.ranks import Ranks

__all__ = ["act_together"]

ResultT = TypeVar("ResultT")


def act_together(
    ranks: Ranks,
    what: str,
    act: Callable[[], ResultT],
    *,
    only_main: bool = False,
    failure: Exception | None = None,
) -> list[ResultT]:
    """Act on each rank (or only the main one) and share the results; a failure of one rank is raised on all.

    `failure` is one of this rank from before: it does not act, but reports it.

    Raises:
        CrashproofError: What the first rank that failed has raised; a single process raises its own, or an `OSError`.
        RankLost: Another rank died, or did not take part within the limit.
    """
    results: list[ResultT] = []
    if failure is None and (ranks.is_main or not only_main):
        try:
            results = [act()]
        except (CrashproofError, OSError) as error:
            failure = error
    if ranks.num_ranks == 1:
        if failure is not None:
            raise failure
        return results
    outcomes = ranks.all_gather((results, _failure_record(failure)), what)
    for rank, (_, record) in enumerate(outcomes):
        if record is not None:
            raise _failure_of(rank, *record)
    return [result for results, _ in outcomes for result in results]


def _failure_record(failure: Exception | None) -> tuple[type[CrashproofError], str, str] | None:
    """The kind, message and hint of a failure, which can be sent to other processes."""
    if failure is None:
        return None
    if not isinstance(failure, CrashproofError):
        failure = StorageUnwritable(Path("The checkpoint"), reason=str(failure).rstrip("."))
    return type(failure), failure.message, failure.hint


def _failure_of(rank: int, kind: type[CrashproofError], message: str, hint: str) -> CrashproofError:
    """The same kind of error again; its constructor wants what was not sent."""
    error = kind.__new__(kind)
    CrashproofError.__init__(error, f"Rank {rank}: {message}", hint=hint)
    return error
