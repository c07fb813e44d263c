"""Time of a look at runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from statistics import median
from time import perf_counter

from benchmarks.figures import Section, in_unit
from benchmarks.made_runs import CONFIG, new_tracker
from benchmarks.page_speed import get_timed, served
from crashproof import ProgressTracker, TrackerSettings

__all__ = ["measure"]

_ROUNDS = 5
_NUM_RUNS, _NUM_CRASHED = 1_000, 20
_STEPS_A_RUN = 1_500
_CHECKPOINT_BYTES = 1 << 30
_NUM_LINES = 1_000
_PROGRAM = "from crashproof.cli import main; main()"


def measure(work: Path, *, is_full: bool) -> Section:
    """Look at one long run and at many, each time from a process of its own."""
    num_steps = 10_000_000 if is_full else 1_000_000
    long, saved, many = work / "long", work / "saved", work / "many"
    _make_long(long, num_steps)
    _make_saved(saved)
    _make_many(many)
    every = str(num_steps // _NUM_LINES)
    started = _seconds("--help")
    looks = [
        ("start of the command", "`crashproof --help`", started),
        ("a checkpoint of 1 GiB", "`status`", _seconds("status", str(saved))),
        ("a checkpoint of 1 GiB", "`status --verify`", _seconds("status", str(saved), "--verify")),
        (f"{num_steps:,} steps", f"`history --every {every}`", _seconds("history", str(long), "--every", every)),
        (f"{_NUM_RUNS:,} runs", "`runs`", _seconds("runs", str(many))),
        *_page_of_many(many),
    ]
    _crash_some(many)
    looks.append((f"the same, {_NUM_CRASHED} of them killed", "`runs`", _seconds("runs", str(many))))
    return Section(
        title="Looking at runs",
        columns=["of", "look", "time", "without the start of the command"],
        rows=[_row(*each, started=started) for each in looks],
        notes=[
            f"Each look in a process of its own, the median of {_ROUNDS}; files are in the page cache. `status` of "
            "files that are unchanged since they were verified reads none of them, `--verify` reads all. The page: "
            "one request to a server that has just started, and the same again. Each of the many runs has "
            f"{_STEPS_A_RUN:,} steps and was closed; of one that was killed the journals are read.",
            "Goals: `history --every` of 10 million steps within 1 s, a list of 1,000 runs within 300 ms.",
        ],
    )


def _row(subject: str, look: str, seconds: float, *, started: float) -> list[str]:
    is_command = look.startswith("`") and "--help" not in look
    return [subject, look, in_unit(seconds), in_unit(max(0.0, seconds - started)) if is_command else ""]


def _seconds(*arguments: str) -> float:
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    return median(_timed(lambda: subprocess.run(command, capture_output=True, check=False)) for _ in range(_ROUNDS))


def _timed(look: Callable[[], object]) -> float:
    begun = perf_counter()
    look()
    return perf_counter() - begun


def _page_of_many(many: Path) -> list[tuple[str, str, float]]:
    firsts, seconds = [], []
    for _ in range(_ROUNDS):
        with served(many) as url:
            firsts.append(get_timed(f"{url}api/runs")[0])
            seconds.append(get_timed(f"{url}api/runs")[0])
    subject = f"{_NUM_RUNS:,} runs"
    return [
        (subject, "the page's list, first", median(firsts)),
        (subject, "the page's list, second", median(seconds)),
    ]


def _make_long(folder: Path, num_steps: int) -> None:
    tracker = new_tracker(folder)
    for step in range(1, num_steps + 1):
        tracker.update_metrics(step, 1.0 / step, {"ce": 0.4, "kd": 0.6}, 3e-4, step * 32, step * 32_768)
    tracker.close()


def _make_saved(folder: Path) -> None:
    tracker = new_tracker(folder)
    tracker.update_metrics(1, 1.0, {}, 3e-4, 32, 32_768)
    path = folder / "checkpoint_1.pt"
    with path.open("wb") as file:
        for _ in range(_CHECKPOINT_BYTES >> 20):
            file.write(bytes(1 << 20))
    tracker.record_checkpoint(1, path, 32)
    tracker.close()


def _make_many(folder: Path) -> None:
    """Runs in folders of fifty; most are copies."""
    for number in range(_NUM_RUNS):
        run = folder / f"group-{number // 50}" / f"run-{number}"
        if number:
            copytree(folder / "group-0" / "run-0", run)
        else:
            _make_one(run)


def _make_one(folder: Path) -> None:
    settings = TrackerSettings(has_heartbeat=False)
    tracker = ProgressTracker(folder / "progress", CONFIG, 2 * _STEPS_A_RUN, settings=settings)
    for step in range(1, _STEPS_A_RUN + 1):
        tracker.update_metrics(step, 2.0 - step / 2000, {"ce": 0.4, "kd": 0.6}, 3e-4, step * 32, step * 32_768)
    tracker.close()


def _crash_some(many: Path) -> None:
    """Cut the end of the attempt off, as if the process had been killed before it."""
    for number in range(_NUM_CRASHED):
        events = many / f"group-{number // 50}" / f"run-{number}" / "progress" / "events.jsonl"
        lines = events.read_bytes().splitlines(keepends=True)
        events.write_bytes(b"".join(lines[:-1]))
