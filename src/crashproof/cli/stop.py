"""Ask a run to save and exit."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct

from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.cli.status import RestartPoint, restart_point
from crashproof.disk.lock import Holder
from crashproof.errors import CannotStop
from crashproof.reading.run_reader import RunReader
from crashproof.supervisor.processes import has_open
from crashproof.supervisor.state import supervisor_of

__all__ = ["stop"]

EXIT_STILL_RUNNING = 1
_SECONDS_BETWEEN_LOOKS = 0.2


class _Outcome(Struct, frozen=True, kw_only=True):
    """What became of the run."""

    was_running: bool
    has_ended: bool
    pid: int | None
    host: str | None
    steps_completed: int
    total_steps_target: int
    resume: RestartPoint | None
    """None where the run has not ended."""


def stop(
    folder: Folder,
    seconds: Annotated[float, typer.Option(min=0.0, help="Maximum wait for the run to end, in seconds.")] = 300.0,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the run to end, or return at once.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Ask the process that writes a run to save and exit: sends SIGTERM, as a scheduler does.

    The trainers and `crashproof generate` finish their step, save, and exit
    with 75: start the same command again. Your own loop does the same if it
    handles SIGTERM (see crashproof.pytorch.interrupts); otherwise it ends at
    once, and everything it has reported is kept. Below `crashproof run` the
    supervisor is asked, which passes it on and starts nothing again.

    Exit codes: 0 no process writes the run any more; 1 still running after the
    wait; 2 error, such as a process on another host.

    Example: crashproof stop runs/quickstart
    """
    reader = RunReader.open(folder)
    holder = reader.holder()
    if holder is not None:
        _send_sigterm(holder, reader.folder.lock, folder)
        if wait and not as_json:
            say(f"Asked process {holder.pid} to save and exit; waiting up to {seconds:g} s.")
    has_ended = holder is None or (wait and _wait_for_end(reader, holder, seconds))
    outcome = _outcome(reader, holder, has_ended=has_ended)
    if as_json:
        print_json(outcome)
    else:
        say(_in_words(outcome, folder, has_waited=wait))
    if wait and not has_ended:
        raise typer.Exit(EXIT_STILL_RUNNING)


def _send_sigterm(holder: Holder, lock: Path, folder: Path) -> None:
    if holder.host != socket.gethostname():
        raise CannotStop(
            folder,
            reason=f"process {holder.pid} writes it on host {holder.host}, and this host is {socket.gethostname()}",
            hint=f"Run on that host: crashproof stop {folder}",
        )
    if holder.pid <= 1 or not has_open(holder.pid, lock):
        raise CannotStop(
            folder,
            reason=f"process {holder.pid} of this machine is not the one that writes it (another container, perhaps)",
            hint=f"Run where it was started: crashproof stop {folder}",
        )
    try:
        # A supervisor would start it again.
        os.kill(supervisor_of(holder.pid) or holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        # The process has just ended by itself.
        return
    except PermissionError:
        raise CannotStop(
            folder, reason=f"process {holder.pid} belongs to another user", hint="Run as its owner, or as root."
        ) from None


def _wait_for_end(
    reader: RunReader, holder: Holder, seconds: float, *, steady: Callable[[], float] = time.monotonic
) -> bool:
    """Wait until that process releases the run; return whether it did."""
    end = steady() + seconds
    while reader.holder() == holder:
        if steady() >= end:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


def _outcome(reader: RunReader, holder: Holder | None, *, has_ended: bool) -> _Outcome:
    session = reader.session()
    return _Outcome(
        was_running=holder is not None,
        has_ended=has_ended,
        pid=None if holder is None else holder.pid,
        host=None if holder is None else holder.host,
        steps_completed=session.steps_completed,
        total_steps_target=session.total_steps_target,
        resume=restart_point(reader, session) if has_ended else None,
    )


def _in_words(outcome: _Outcome, folder: Path, *, has_waited: bool) -> str:
    step = f"step {outcome.steps_completed:,} of {outcome.total_steps_target:,}"
    if outcome.resume is None:
        return f"{'' if has_waited else f'Asked process {outcome.pid} to save and exit. '}Still running, at {step}."
    ended = "Ended" if outcome.was_running else f"No process writes {folder}: it ended"
    return f"{ended} at {step}. A restart {outcome.resume.in_words}."
