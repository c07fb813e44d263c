"""Ask a run to save and end."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.arguments import AsJson, Folder
from holdfast.cli.output import print_json, say
from holdfast.cli.status import what_a_restart_resumes
from holdfast.disk.lock import Holder
from holdfast.errors import CannotStop
from holdfast.reader import RunReader

__all__ = ["stop"]

EXIT_STILL_RUNNING = 1
_PROCESSES = Path("/proc")
_LOOK_EVERY_SECONDS = 0.1


def stop(
    folder: Folder,
    seconds: Annotated[float, typer.Option(min=0, help="Wait so long for its end.")] = 300.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask, and do not wait for the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the process that writes a run to save and end: SIGTERM, once.

    Only a process of this host that really has the run's lock open is asked.
    The trainers and loops that listen (holdfast.pytorch.interrupts.Interrupts)
    finish their step and save first. A loop that does not listen ends at once;
    nothing acknowledged is lost, and a restart resumes from the newest
    checkpoint.

    Exit codes: 0 stopped, asked with --no-wait, or nobody writes it; 1 it still
    runs after the wait; 2 an error.

    Example: holdfast stop runs/quickstart --seconds 60
    """
    reader = RunReader.open(folder)
    holder = reader.holder()
    if holder is None:
        _tell(_answer(reader, "not running"), folder, as_json=as_json)
        return
    _ask(reader, holder)
    if no_wait:
        _tell({"state": "asked", "pid": holder.pid, "host": holder.host}, folder, as_json=as_json)
        return
    if not as_json:
        say(f"{folder}: process {holder.pid} was asked to save and end; waiting for it.")
    if not _has_let_go(reader, holder, seconds):
        _tell(
            {"state": "still running", "pid": holder.pid, "host": holder.host, "waited_seconds": seconds},
            folder,
            as_json=as_json,
        )
        raise typer.Exit(EXIT_STILL_RUNNING)
    _tell(_answer(reader, "stopped"), folder, as_json=as_json)


def _ask(reader: RunReader, holder: Holder) -> None:
    """Send SIGTERM to the writer of a run, and to no other process.

    Raises:
        CannotStop: it cannot be told which process that is, or it may not be asked.
    """
    root, pid = reader.folder.root, holder.pid
    if pid <= 0:
        raise CannotStop(root, reason="its process has not said its name yet", hint="Try again in a moment.")
    if holder.host != socket.gethostname():
        raise CannotStop(
            root,
            reason=f"it is written on {holder.host} by process {pid}, and this is {socket.gethostname()}",
            hint=f"There, type: kill -TERM {pid}",
        )
    # From here on the number means this process, even if it ends and another one gets its number.
    handle = _handle_of(pid)
    try:
        if _PROCESSES.is_dir() and not _has_open(pid, reader.folder.lock):
            raise CannotStop(
                root,
                reason=f"process {pid} of this host does not have {reader.folder.lock} open",
                hint="The run may be written from a container or another host; stop it there with kill -TERM.",
            )
        if handle is None:
            os.kill(pid, signal.SIGTERM)
        else:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
    except ProcessLookupError:
        # It has ended in this moment, which was the wish.
        return
    except PermissionError:
        raise CannotStop(
            root, reason=f"process {pid} belongs to another user", hint=f"As that user, type: kill -TERM {pid}"
        ) from None
    finally:
        if handle is not None:
            os.close(handle)


def _handle_of(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open.

    Raises:
        PermissionError: it is another user's.
    """
    wanted = path.stat()
    try:
        files = list((_PROCESSES / str(pid) / "fd").iterdir())
    except FileNotFoundError:
        return False
    for file in files:
        # It may be closed by now.
        with suppress(FileNotFoundError):
            found = file.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


def _has_let_go(reader: RunReader, asked: Holder, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        holder = reader.holder()
        # Whatever starts it again is not the process that was asked.
        if holder is None or (holder.pid, holder.since) != (asked.pid, asked.since):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY_SECONDS)


def _answer(reader: RunReader, state: str) -> dict[str, Any]:
    session = reader.session()
    now_by = reader.holder()
    return {
        "state": state,
        "step": session.steps_completed,
        "total_steps_target": session.total_steps_target,
        "ended_as": session.attempts[-1].how if session.attempts else None,
        "taken_up_again_by": None if now_by is None else {"pid": now_by.pid, "host": now_by.host},
        "resume": what_a_restart_resumes(reader, session),
    }


def _tell(answer: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    elif answer["state"] == "asked":
        say(f"{folder}: process {answer['pid']} was asked to save and end.")
    elif answer["state"] == "still running":
        say(
            f"{folder}: process {answer['pid']} still runs after {answer['waited_seconds']:g} s; "
            "it may be saving. Ask again, or wait longer with --seconds."
        )
    else:
        say(f"{folder}: {_how_it_stands(answer)} {_restart(answer['resume'])}")


def _how_it_stands(answer: dict[str, Any]) -> str:
    at = f"step {answer['step']:,} of {answer['total_steps_target']:,}"
    if answer["state"] == "not running":
        return f"nobody writes it; it stands at {at}."
    how = {"preempted": "it saved and ended", "running": "it ended at once, without saving"}
    words = f"stopped at {at}: {how.get(answer['ended_as'], answer['ended_as'])}."
    again = answer["taken_up_again_by"]
    if again is not None:
        words = f"it let go, and process {again['pid']} on {again['host']} has taken it up again; it is at {at}."
    return words


def _restart(resume: dict[str, Any]) -> str:
    if resume["checkpoint"] is not None:
        return f"A restart resumes at step {resume['step']:,} from {resume['checkpoint']}."
    if resume["step"] is None:
        return "A restart would stop with an error: no checkpoint can be used."
    return "A restart would begin at step 0: no checkpoint was recorded."
