"""Ask a run to save and end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.cli.status import restart_point
from crashproof.disk.lock import Holder
from crashproof.errors import CannotStop
from crashproof.reading.run_reader import RunReader

__all__ = ["stop"]

EXIT_STILL_RUNNING = 1
_SECONDS_BETWEEN_LOOKS = 0.2
_PROCESSES = Path("/proc")


def stop(
    folder: Folder,
    seconds: Annotated[float, typer.Option(min=0.0, help="Wait so long for it to end.")] = 300.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Whether to wait at all.")] = True,
    as_json: AsJson = False,
) -> None:
    """Ask the process that writes a run to save and end: it gets SIGTERM, as from a scheduler.

    The trainers and `crashproof generate` finish their step, save, and exit with
    75: start the same command again. A loop of your own does so where it
    listens (crashproof.pytorch.interrupts); otherwise SIGTERM ends it at once,
    and what it had reported is kept all the same.

    Exit codes: 0 nobody writes the run any more; 1 it still runs after the
    wait; 2 an error, such as a process on another host.

    Example: crashproof stop runs/quickstart
    """
    reader = RunReader.open(folder)
    holder = reader.holder()
    if holder is not None:
        _ask(holder, reader.folder.lock, folder)
        if wait and not as_json:
            say(f"Asked process {holder.pid} to save and end; waiting up to {seconds:g} s.")
    has_ended = holder is None or (wait and _waited(reader, holder, seconds))
    answer = _answer(reader, holder, has_ended=has_ended)
    if as_json:
        print_json(answer)
    else:
        say(_in_words(answer, folder, waited=wait))
    if wait and not has_ended:
        raise typer.Exit(EXIT_STILL_RUNNING)


def _ask(holder: Holder, lock: Path, folder: Path) -> None:
    if holder.host != socket.gethostname():
        raise CannotStop(
            folder,
            reason=f"process {holder.pid} on {holder.host} writes it, and this is {socket.gethostname()}",
            hint=f"Type there: crashproof stop {folder}",
        )
    if holder.pid <= 1 or not _has_open(holder.pid, lock):
        raise CannotStop(
            folder,
            reason=f"whoever writes it is not process {holder.pid} as seen from here (another container, perhaps)",
            hint=f"Type where it was started: crashproof stop {folder}",
        )
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        # It has just ended by itself.
        return
    except PermissionError:
        raise CannotStop(
            folder, reason=f"process {holder.pid} belongs to somebody else", hint="Ask as its owner, or as root."
        ) from None


def _has_open(pid: int, lock: Path, *, processes: Path = _PROCESSES) -> bool:
    """Whether a process really holds the file that names it: numbers of processes are used again, and differ
    between containers. Where it cannot be told, the file is believed.
    """
    if not (processes / "self").exists():
        return True
    try:
        wanted = lock.stat()
        for each in (processes / str(pid) / "fd").iterdir():
            try:
                found = each.stat()
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _waited(
    reader: RunReader, holder: Holder, seconds: float, *, steady: Callable[[], float] = time.monotonic
) -> bool:
    """Wait until that process lets the run go; says whether it did."""
    end = steady() + seconds
    while reader.holder() == holder:
        if steady() >= end:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


def _answer(reader: RunReader, holder: Holder | None, *, has_ended: bool) -> dict[str, Any]:
    session = reader.session()
    return {
        "was_running": holder is not None,
        "has_ended": has_ended,
        "pid": None if holder is None else holder.pid,
        "host": None if holder is None else holder.host,
        "steps_completed": session.steps_completed,
        "total_steps_target": session.total_steps_target,
        "resume": restart_point(reader, session) if has_ended else None,
    }


def _in_words(answer: dict[str, Any], folder: Path, *, waited: bool) -> str:
    step = f"step {answer['steps_completed']:,} of {answer['total_steps_target']:,}"
    if not answer["has_ended"]:
        since = "It still runs" if waited else f"Asked process {answer['pid']} to save and end; it runs on"
        return f"{since}, at {step}."
    resume = answer["resume"]
    if resume.checkpoint is not None:
        restart = f"A restart resumes at step {resume.step:,} from {resume.checkpoint}."
    elif resume.step is None:
        restart = "A restart would stop with an error: no checkpoint can be used."
    else:
        restart = "A restart begins at step 0: no checkpoint was recorded."
    return f"{'Ended' if answer['was_running'] else f'Nobody writes {folder}; it ended'} at {step}. {restart}"
