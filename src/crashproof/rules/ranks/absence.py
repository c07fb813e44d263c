"""What is known of the ranks that do not answer."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

__all__ = [
    "Absence",
    "ProcessState",
    "RankIdentity",
    "Sign",
    "is_explained",
    "is_roll_complete",
    "names_of",
    "reason_of",
    "those_to_blame",
    "who_failed",
]

_ANSWER_SECONDS = 1.5
_MOST_EXPLAINED = 8
"""Ranks whose state is told one by one; where a rack goes down, hundreds are absent for one reason."""


class ProcessState(StrEnum):
    """What the kernel of this host says of a process."""

    UNKNOWN = "unknown"
    """It runs on another host, or the kernel does not tell."""
    RUNNING = "running"
    STOPPED = "stopped (state T)"
    TRACED = "stopped by a debugger (state t)"
    ENDED = "its process has ended"


class RankIdentity(Struct, frozen=True, kw_only=True):
    """Which process a rank is; two processes are never equal in all of it."""

    host: str
    boot_id: str
    """Of the host's kernel; empty where it has none."""
    pid_namespace: str
    """The processes that the pid counts among, such as those of a container; empty if unknown."""
    pid: int
    start_ticks: int
    """When the process started, in clock ticks since the boot."""


class Sign(Struct, frozen=True, kw_only=True):
    """What a rank says of itself, again and again."""

    beats: int
    """How often it has said something."""
    what: str = ""
    """What its main thread is doing; completes "while …"."""
    seconds: float = 0.0
    """For how long."""
    left: str = ""
    """Why it has left the run, once it has."""
    is_final: bool = False
    """Whether it has left with an error that another start does not mend."""


class Absence(Struct, frozen=True, kw_only=True):
    """A rank that does not take part, and what could be learned of it."""

    rank: int
    identity: RankIdentity | None = None
    state: ProcessState = ProcessState.UNKNOWN
    first: Sign | None = None
    """Its sign when the looking began; None if it could not be read."""
    last: Sign | None = None
    """Its sign at the end."""
    unread: str = ""
    """Why its signs could not be read."""


def is_explained(absence: Absence) -> bool:
    """Whether nothing is gained by waiting for the rank: it cannot answer any more."""
    has_left = absence.last is not None and bool(absence.last.left)
    return has_left or absence.state in (ProcessState.STOPPED, ProcessState.TRACED, ProcessState.ENDED)


def is_roll_complete(absences: Sequence[Absence], *, seconds: float) -> bool:
    """Whether to wait no longer for ranks to answer, so many seconds after they were called."""
    explained = [each for each in absences if is_explained(each)]
    # Whoever is to blame is known; the others had their time to say that they are there.
    return len(explained) == len(absences) or (bool(explained) and seconds > _ANSWER_SECONDS)


def those_to_blame(absences: Sequence[Absence]) -> list[Absence]:
    """Those that are lost; the others may be late because of them.

    Whose end is known goes before who gives no sign of life, and that before who is alive and late.
    """
    blamed = [each for each in absences if is_explained(each)] or [each for each in absences if not _is_alive(each)]
    return blamed or list(absences)


def who_failed(absences: Sequence[Absence]) -> Absence | None:
    """The first that has left with an error that another start does not mend; None if there is none."""
    return next((each for each in absences if each.last is not None and each.last.is_final), None)


def names_of(absences: Sequence[Absence]) -> str:
    """The ranks as a message names them: `rank 1 (host-b, pid 123)`."""
    if not absences:
        return "another rank"
    names = [_name(each) for each in absences[:_MOST_EXPLAINED]]
    if len(absences) > len(names):
        return f"{', '.join(names)} and {len(absences) - len(names)} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def reason_of(absences: Sequence[Absence], *, network: str) -> str:
    """Why the ranks do not answer, as far as it is known, and what the `network` library said."""
    told = [_finding(each) for each in absences[:_MOST_EXPLAINED]]
    if len(set(told)) > 1:
        told = [f"rank {each.rank}: {text}" for each, text in zip(absences, told, strict=False)]
    else:
        told = told[:1]
    findings = "; ".join(told)
    return f"{findings} ({network})" if told and network and network != findings else findings or network


def _name(absence: Absence) -> str:
    who = absence.identity
    return f"rank {absence.rank}" if who is None else f"rank {absence.rank} ({who.host}, pid {who.pid})"


def _finding(absence: Absence) -> str:
    last = absence.last
    if last is not None and last.left:
        return last.left
    if is_explained(absence):
        return absence.state.value
    if absence.unread or last is None:
        return absence.unread or "it has said nothing yet"
    if _is_alive(absence):
        return f"it is alive, and has been {last.what} for {last.seconds:.0f} s"
    return "it gives no sign of life"


def _is_alive(absence: Absence) -> bool:
    first, last = absence.first, absence.last
    return first is not None and last is not None and last.beats != first.beats
