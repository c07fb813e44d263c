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
from typing import TYPE_CHECKING, Annotated

import typer

from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigError
from crashproof.reading.run_reader import RunReader
from crashproof.rules.secrets.texts import without_secrets

if TYPE_CHECKING:
    from crashproof.views.post_mortem import Surroundings

__all__ = ["doctor"]

_LOG_LINES = 200
_LOG_BYTES = 256 << 10
_LOG_PATTERNS = ("*.log", "*.out", "*.err", "nohup.out")
_KERNEL_LINES = 12
_KERNEL_SECONDS = 10.0


def doctor(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Output file (default: ./NAME-doctor.html).")] = None,
    log: Annotated[Path | None, typer.Option(help="Log of the run (default: the newest in or next to DIR).")] = None,
    as_json: AsJson = False,
) -> None:
    """Diagnose what ended a run, and write a post-mortem as one HTML file.

    Covers the last steps, attempts, warnings, every checkpoint (read back),
    damage, the end of the log (secrets masked), machine, disk, config, and how
    to continue. The file is self-contained. Changes nothing in DIR.

    Example: crashproof doctor runs/quickstart
    """
    # Imported here so that the other commands start without the page and its pictures.
    from crashproof.views.post_mortem import examine
    from crashproof.views.post_mortem_page import post_mortem_page

    reader = RunReader.open(folder)
    found = examine(reader, _surroundings(reader.folder, log), name=_name_of(folder), now=time.time())
    if as_json:
        print_json(found.as_object())
        return
    target = out or Path(f"{_name_of(folder)}-doctor.html")
    if reader.folder.is_inside(target):
        raise ConfigError(f"{target} is inside the run.", hint="Pass --out with a path outside of it.")
    with storage_errors(target):
        write_bytes_atomically(target, post_mortem_page(found).encode())
    say(found.sentence)
    for clue in found.clues:
        say(f"  {clue}")
    say(found.next_step)
    say(f"Full report: {target}")


def _name_of(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name or "run"


def _surroundings(folder: RunFolder, log: Path | None) -> Surroundings:
    from crashproof.views.post_mortem import Surroundings

    if log is not None and not log.is_file():
        raise ConfigError(f"The log {log} does not exist.", hint="Pass an existing file, or omit --log.")
    found = log or _find_newest_log(folder)
    usage = shutil.disk_usage(folder.root)
    return Surroundings(
        host=socket.gethostname(),
        free_bytes=usage.free,
        disk_bytes=usage.total,
        log_name=None if found is None else str(found),
        log_tail=() if found is None else _read_tail(found),
        kernel_lines=_read_kernel_lines(),
        facts={"system": platform.platform(), "python": platform.python_version(), "run": str(folder.root)},
    )


def _find_newest_log(folder: RunFolder) -> Path | None:
    """The newest log in the run's folder, or next to it under the run's name."""
    beside = [folder.root.with_name(f"{folder.root.name}{suffix}") for suffix in (".log", ".out", ".err")]
    inside = [each for pattern in _LOG_PATTERNS for each in folder.root.glob(pattern)]
    logs = [each for each in (*inside, *beside) if each.is_file()]
    return max(logs, key=lambda each: each.stat().st_mtime, default=None)


def _read_tail(log: Path) -> Sequence[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        text = file.read().decode("utf-8", "replace")
    return [without_secrets(line) for line in text.splitlines()[-_LOG_LINES:]]


def _read_kernel_lines() -> list[str] | None:
    """The kernel's messages about processes killed for lack of memory (OOM); None where dmesg is not permitted."""
    try:
        messages = subprocess.run(
            ["dmesg", "--ctime"],  # noqa: S607 - whichever the system has
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_KERNEL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if messages.returncode != 0:
        return None
    return list(_about_memory(messages.stdout.splitlines()))[-_KERNEL_LINES:]


def _about_memory(lines: Sequence[str]) -> Iterator[str]:
    return (line for line in lines if "out of memory" in line.lower() or "oom-kill" in line.lower())
