"""A logger, in a process of its own.

`python -m benchmarks.loggers.process MODE NAME RESULT FOLDER…` writes its figures to RESULT as JSON, so that what a
tracker prints is in nobody's way.
"""

from __future__ import annotations

import json
import logging
import mmap
import resource
import struct
import sys
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time
from typing import Any

import psutil

from benchmarks.figures import percentile
from benchmarks.loggers.choice import CHOICES, NOTHING
from benchmarks.loggers.step_logger import StepLogger

_WARM_UP_SECONDS = 0.3
_FLAT_SECONDS = 1.0
_MOST_CALLS = 200_000
_PACED_SECONDS = 1.5
_PACE_SECONDS = 0.001
_DRAIN_SECONDS = 1.0
"""After the last step, for what a logger does in the background."""
_PERCENTS = (50, 99, 99.9, 100)


def main() -> None:
    """Measure what the command line asks for."""
    mode, name, result, *folders = sys.argv[1:]
    # A run that was killed while it was opened says so; here that is meant.
    logging.getLogger("crashproof").setLevel(logging.ERROR)
    choice = next(each for each in (*CHOICES, NOTHING) if each.name == name)
    figures = _MODES[mode](choice.kind(), [Path(folder) for folder in folders], Path(result))
    Path(result).write_text(json.dumps(figures))


def _cost(kind: Callable[[Path], StepLogger], folders: list[Path], result: Path) -> dict[str, Any]:
    """Seconds of calls, one after the other and at a pace, less those of a call that does nothing."""
    empty = percentile(_timed(NOTHING.kind()(folders[0]), 0, 0.05, 0.0)[1], 50)  # type: ignore[call-arg]
    logger = kind(folders[0])
    step, _ = _timed(logger, 0, _WARM_UP_SECONDS, 0.0)
    step, flat = _timed(logger, step, _FLAT_SECONDS, 0.0)
    step, paced = _timed(logger, step, _PACED_SECONDS, _PACE_SECONDS)
    logger.close()
    return {
        "calls": len(flat),
        "flat": [(percentile(flat, each) - empty) / 1e9 for each in _PERCENTS],
        "paced": [(percentile(paced, each) - empty) / 1e9 for each in _PERCENTS],
    }


def _timed(logger: StepLogger, step: int, seconds: float, pace_seconds: float) -> tuple[int, array[int]]:
    """The last step, and the nanoseconds of each call."""
    prepare, log, taken = logger.prepare, logger.log, array("q")
    end = perf_counter_ns() + int(seconds * 1e9)
    due = perf_counter()
    while True:
        step += 1
        prepared = prepare(step)
        begun = perf_counter_ns()
        log(step, prepared)
        ended = perf_counter_ns()
        taken.append(ended - begun)
        if ended > end or len(taken) == _MOST_CALLS:
            return step, taken
        if pace_seconds:
            due = _wait(due + pace_seconds)


def _wait(due: float) -> float:
    """Sleep until a step is due; one that is late already is due now."""
    now = perf_counter()
    if due <= now:
        return now
    time.sleep(due - now)
    return due


def _cpu(kind: Callable[[Path], StepLogger], folders: list[Path], result: Path) -> dict[str, Any]:
    """CPU seconds a step of all threads and of child processes; opening and closing are not in it."""
    logger = kind(folders[0])
    step, _ = _stepped(logger, 0, _WARM_UP_SECONDS, 0.0)
    step, flat = _stepped(logger, step, _FLAT_SECONDS, 0.0)
    step, paced = _stepped(logger, step, _PACED_SECONDS, _PACE_SECONDS)
    logger.close()
    return {"flat": flat, "paced": paced}


def _stepped(logger: StepLogger, step: int, seconds: float, pace_seconds: float) -> tuple[int, float]:
    """The last step, and the CPU seconds of each, what is done behind them included."""
    prepare, log = logger.prepare, logger.log
    first, before = step, _cpu_seconds()
    end = due = perf_counter()
    end += seconds
    while perf_counter() < end:
        step += 1
        log(step, prepare(step))
        if pace_seconds:
            due = _wait(due + pace_seconds)
    time.sleep(_DRAIN_SECONDS)
    return step, (_cpu_seconds() - before) / (step - first)


def _cpu_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return process_time() + ended.ru_utime + ended.ru_stime + sum(each.user + each.system for each in living)


def _endless(
    kind: Callable[[Path], StepLogger], folders: list[Path], result: Path, *, pace_seconds: float
) -> dict[str, Any]:
    """Log until killed; RESULT has the newest step that was acknowledged, in memory that outlives the process."""
    with result.open("r+b") as file:
        acknowledged = mmap.mmap(file.fileno(), 8)
    logger = kind(folders[0])
    prepare, log, due, step = logger.prepare, logger.log, perf_counter(), 0
    while True:
        step += 1
        log(step, prepare(step))
        struct.pack_into("<q", acknowledged, 0, step)
        if pace_seconds:
            due = _wait(due + pace_seconds)


def _found(kind: type[StepLogger], folders: list[Path], result: Path) -> dict[str, Any]:
    """For each folder, how many of the steps up to the one that RESULT names are there."""
    acknowledged: list[int] = json.loads(result.read_text())
    return {
        "found": [
            len({step for step in kind.steps_found(folder) if step <= newest})
            for folder, newest in zip(folders, acknowledged, strict=True)
        ]
    }


_MODES: dict[str, Callable[..., dict[str, Any]]] = {"cost": _cost, "cpu": _cpu, "found": _found}
_MODES["endless"] = partial(_endless, pace_seconds=0.0)
_MODES["endless_paced"] = partial(_endless, pace_seconds=_PACE_SECONDS)


if __name__ == "__main__":
    main()
