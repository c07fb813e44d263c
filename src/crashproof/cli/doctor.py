"""Write a post-mortem of a run."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigError
from crashproof.reading.run_reader import RunReader
from crashproof.rules.secrets.texts import without_secrets
from crashproof.views.post_mortem import Surroundings, examine
from crashproof.views.post_mortem_page import post_mortem_page

__all__ = ["doctor"]

_LOG_LINES = 200
_LOG_BYTES = 256 << 10
_LOG_PATTERNS = ("*.log", "*.out", "*.err", "nohup.out")
_KERNEL_LINES = 12
_KERNEL_SECONDS = 10.0


def doctor(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Write it here; else NAME-doctor.html in the current folder.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="The run's log; else the newest one that lies beside it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find out what ended a run, and write it down as one HTML file.

    Last steps, attempts, warnings, every checkpoint read back, damage, the end
    of its log (secrets hidden), machine, disk, config, and how to go on. The
    file needs nothing else and can be sent to somebody. Changes nothing in DIR.

    Example: crashproof doctor runs/quickstart
    """
    reader = RunReader.open(folder)
    found = examine(reader, _surroundings(reader.folder, log), name=_name_of(folder), now=time.time())
    if as_json:
        print_json(found.as_object())
        return
    target = out or Path(f"{_name_of(folder)}-doctor.html")
    if reader.folder.is_inside(target):
        raise ConfigError(f"{target} lies in the run.", hint="Pass --out with a path outside of it.")
    with storage_errors(target):
        write_bytes_atomically(target, post_mortem_page(found).encode())
    say(found.sentence)
    for clue in found.clues:
        say(f"  {clue}")
    say(found.next_step)
    say(f"More is in {target}.")


def _name_of(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name or "run"


def _surroundings(folder: RunFolder, log: Path | None) -> Surroundings:
    if log is not None and not log.is_file():
        raise ConfigError(f"There is no log {log}.", hint="Pass a file that exists, or leave --log out.")
    found = log or _newest_log(folder)
    usage = shutil.disk_usage(folder.root)
    return Surroundings(
        host=socket.gethostname(),
        free_bytes=usage.free,
        disk_bytes=usage.total,
        log_name=None if found is None else str(found),
        log_tail=() if found is None else _tail(found),
        kernel_lines=_kernel_lines(),
        facts={"system": platform.platform(), "python": platform.python_version(), "run": str(folder.root)},
    )


def _newest_log(folder: RunFolder) -> Path | None:
    """In the run's folder, or beside it under the run's own name."""
    beside = [folder.root.with_name(f"{folder.root.name}{suffix}") for suffix in (".log", ".out", ".err")]
    inside = [each for pattern in _LOG_PATTERNS for each in folder.root.glob(pattern)]
    logs = [each for each in (*inside, *beside) if each.is_file()]
    return max(logs, key=lambda each: each.stat().st_mtime, default=None)


def _tail(log: Path) -> Sequence[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        text = file.read().decode("utf-8", "replace")
    return [without_secrets(line) for line in text.splitlines()[-_LOG_LINES:]]


def _kernel_lines() -> list[str] | None:
    """What the kernel said of processes that it ended for want of memory; None where it may not be asked."""
    try:
        told = subprocess.run(
            ["dmesg", "--ctime"],  # noqa: S607 - whichever the system has
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_KERNEL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if told.returncode != 0:
        return None
    return list(_of_memory(told.stdout.splitlines()))[-_KERNEL_LINES:]


def _of_memory(lines: Sequence[str]) -> Iterator[str]:
    return (line for line in lines if "out of memory" in line.lower() or "oom-kill" in line.lower())
