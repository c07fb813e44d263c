"""Why a supervised process ended."""

from __future__ import annotations

from dataclasses import dataclass

from crashproof.records.states import AttemptState
from crashproof.records.supervision import EndCause

__all__ = ["END_EXIT_CODES", "EXIT_ERROR", "EXIT_START_AGAIN", "EndFacts", "cause_of", "exit_code_of_signal"]

EXIT_ERROR = 2
EXIT_START_AGAIN = 75
_CANNOT_RUN = {126: "the command cannot be executed", 127: "the command was not found"}
END_EXIT_CODES = frozenset({EXIT_ERROR, *_CANNOT_RUN})
"""Another start ends in the same way."""
_SHELL_SIGNALS = range(129, 160)
"""How a shell reports that a signal ended its command: 128 and the number."""
_SIGKILL = 9
_DISK_WORDS = (
    *("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system"),
    *("Input/output error", "DiskFull", "QuotaExceeded", "FileSizeLimit", "StorageUnwritable", "SavesFailed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFacts:
    """What is known of an end."""

    exit_code: int | None
    """None if a signal ended it, or nobody saw it end."""
    signal: int | None
    signal_name: str | None
    hang: str = ""
    """How long it hung, and in which phase; empty if it did not."""
    stop: str = ""
    """What asked the supervisor to stop; empty if nothing did."""
    oom_kills: int = 0
    """Processes of its control group that the kernel killed for lack of memory meanwhile."""
    oom_line: str = ""
    """The kernel's message that names one of its processes."""
    is_complete: bool | None = None
    """Whether all steps of its run are done; None if it opened none."""
    attempt_state: AttemptState | None = None
    """How its attempt ended, as it recorded itself; None without a record."""
    error: str = ""
    """The error that it recorded."""


def cause_of(facts: EndFacts) -> tuple[EndCause, str]:
    """The class of an end, and what is known of it, in words."""
    if facts.hang:
        return EndCause.HANG, facts.hang
    if facts.stop and not (facts.exit_code == 0 and facts.is_complete):
        return EndCause.PREEMPTION, facts.stop
    if facts.exit_code is None and facts.signal is None:
        return _unseen(facts)
    if facts.exit_code == 0:
        return _ended_well(facts)
    number = _signal_of(facts)
    if facts.oom_line or (facts.oom_kills and number in (None, _SIGKILL)):
        return EndCause.OUT_OF_MEMORY, facts.oom_line or f"the kernel killed {facts.oom_kills} of its processes (OOM)"
    if facts.exit_code == EXIT_START_AGAIN:
        return EndCause.START_AGAIN, facts.error or "exit code 75"
    if number is not None:
        return EndCause.SIGNAL, facts.signal_name or f"signal {number}"
    return _failed(facts)


def exit_code_of_signal(number: int) -> int:
    """The exit code by which a shell reports a signal."""
    return 128 + number


def _signal_of(facts: EndFacts) -> int | None:
    if facts.signal is not None:
        return facts.signal
    return facts.exit_code - 128 if facts.exit_code in _SHELL_SIGNALS else None  # type: ignore[operator]


def _unseen(facts: EndFacts) -> tuple[EndCause, str]:
    if facts.attempt_state == AttemptState.COMPLETED:
        return _ended_well(facts)
    return EndCause.UNKNOWN, facts.error or "nobody saw it end, as its supervisor had been killed"


def _ended_well(facts: EndFacts) -> tuple[EndCause, str]:
    if facts.is_complete is False:
        return EndCause.ENDED_EARLY, "it ended well before the run's last step"
    return EndCause.COMPLETED, "it ended well"


def _failed(facts: EndFacts) -> tuple[EndCause, str]:
    code = facts.exit_code or 0
    if any(word in facts.error for word in _DISK_WORDS):
        return EndCause.DISK, facts.error
    if code in END_EXIT_CODES:
        return EndCause.ERROR, facts.error or _CANNOT_RUN.get(code, f"exit code {code}")
    return EndCause.EXCEPTION, facts.error or f"exit code {code}"
