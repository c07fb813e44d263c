"""Acknowledged steps that SIGKILL takes."""

from __future__ import annotations

import json
import mmap
import random
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.figures import Section
from benchmarks.loggers.choice import OURS, Choice, installed, missing_note
from benchmarks.loggers.measured import command_of, run_process

__all__ = ["measure"]

_NUM_KILLS, _MANY_KILLS = 5, 20
_NUM_KILLS_FLAT, _MANY_KILLS_FLAT = 20, 200
"""Of crashproof at full speed."""
_BATCH = 10
_BEFORE_KILL_SECONDS = (0.05, 0.55)
_START_SECONDS = 60.0
_ORPHAN_SECONDS = 10.0
"""So long may a process that a tracker has started go on writing."""
_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kills:
    """What became of the steps of all kills."""

    acknowledged: list[int]
    found: list[int]

    def lost(self) -> list[int]:
        """Acknowledged and not found, for each kill."""
        return [newest - found for newest, found in zip(self.acknowledged, self.found, strict=True)]


def measure(work: Path, *, is_full: bool) -> Section:
    """Kill each logger's process again and again, and count what a reader finds."""
    few, many = (_MANY_KILLS, _MANY_KILLS_FLAT) if is_full else (_NUM_KILLS, _NUM_KILLS_FLAT)
    chance = random.Random(_SEED)
    rows = [_row(OURS, "flat out", _kill(OURS, "endless", work, many, chance))]
    rows += [_row(choice, "1 ms", _kill(choice, "endless_paced", work, few, chance)) for choice in installed()]
    return Section(
        title="Acknowledged steps lost per SIGKILL",
        columns=["", "a step every", "kills", "acknowledged", "found", "lost", "lost per kill, median", "most"],
        rows=rows,
        notes=[
            "A step is acknowledged once the call has returned; its number then stands in memory that the process "
            "shares with the one that kills it, at a random moment of its first half second. A step is found if its "
            "logger's own reader gives all its scalars. Processes that a tracker has started beside the loop are not "
            f"killed, and have {_ORPHAN_SECONDS:.0f} s to write what they have. Lightning's `Trainer` saves its "
            "`CSVLogger` after each line, and logs one step in 50; here it is used by itself.",
            *missing_note(),
            "Goal: 0.",
        ],
    )


def _row(choice: Choice, pace: str, kills: _Kills) -> list[str]:
    lost = kills.lost()
    return [
        *(choice.title, pace, f"{len(lost):,}", f"{sum(kills.acknowledged):,}", f"{sum(kills.found):,}"),
        *(f"{sum(lost):,}", f"{median(lost):,.0f}", f"{max(lost):,}"),
    ]


def _kill(choice: Choice, mode: str, work: Path, num_kills: int, chance: random.Random) -> _Kills:
    acknowledged: list[int] = []
    found: list[int] = []
    while len(found) < num_kills:
        # A few at a time: what runs write at full speed is read and removed before the next ones.
        with tempfile.TemporaryDirectory(dir=work) as folder:
            folders = [Path(folder) / f"{number}" for number in range(min(_BATCH, num_kills - len(found)))]
            newest = [_acknowledged(choice, mode, each, chance.uniform(*_BEFORE_KILL_SECONDS)) for each in folders]
            result = Path(folder) / "result"
            result.write_text(json.dumps(newest))
            found += run_process("found", choice, result, folders)["found"]
            acknowledged += newest
    return _Kills(acknowledged=acknowledged, found=found)


def _acknowledged(choice: Choice, mode: str, folder: Path, seconds: float) -> int:
    """The newest step that the logger acknowledged before it was killed."""
    folder.mkdir()
    counter = folder.with_suffix(".acknowledged")
    counter.write_bytes(bytes(8))
    with (
        counter.open("r+b") as file,
        mmap.mmap(file.fileno(), 8) as shared,
        _logging(choice, mode, folder) as process,
    ):
        until = time.monotonic() + _START_SECONDS
        while not _newest(shared):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{choice.title} acknowledged nothing (exit code {process.poll()})")
            time.sleep(0.005)
        time.sleep(seconds)
        beside = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        newest = _newest(shared)
    _end(beside)
    return newest


@contextmanager
def _logging(choice: Choice, mode: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = command_of(mode, choice, folder.with_suffix(".acknowledged"), [folder])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _newest(shared: mmap.mmap) -> int:
    newest: int = struct.unpack_from("<q", shared, 0)[0]
    return newest


def _end(beside: list[psutil.Process]) -> None:
    """Let the processes that a tracker has started write what they have, then end what is left of them."""
    _, living = psutil.wait_procs(beside, timeout=_ORPHAN_SECONDS)
    for process in living:
        process.kill()
