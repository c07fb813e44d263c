"""Time to open a store of answers."""

from __future__ import annotations

import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

from benchmarks.figures import Section, in_unit
from benchmarks.made_answers import made_key, write_answers
from benchmarks.made_runs import new_tracker
from crashproof.disk.run_folder import RunFolder

__all__ = ["measure"]

_SIZES = (1_000, 100_000)
_LARGEST_SIZE = 1_000_000
_NUM_OPENINGS = 5
_MIB = 1 << 20


def measure(work: Path, *, is_full: bool) -> Section:
    """Open runs that hold growing numbers of answers, and ask for one of them."""
    rows = []
    for size in (*_SIZES, _LARGEST_SIZE) if is_full else _SIZES:
        rows += _rows(work / str(size), size)
    return Section(
        title="Opening a store of answers",
        columns=["entries", "journal", "missing", "open", "first answer", "memory at its peak", "memory kept"],
        rows=rows,
        notes=[
            "Each in a process of its own: `ProgressTracker(…)` until it returns, then the first `read`. Where "
            f"nothing is missing the medians of {_NUM_OPENINGS}, else a single one. Memory is what is resident "
            "beyond what was before the opening. The journal is in the page cache.",
            *([] if is_full else [f"A store of {_LARGEST_SIZE:,} (4.8 GB) is measured with `--full`."]),
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    open_seconds: float
    answer_seconds: float
    peak_bytes: int
    kept_bytes: int


def _rows(folder: Path, size: int) -> list[list[str]]:
    write_answers(folder, size)
    files = RunFolder.under(folder)
    rows = []
    for name, missing in (
        ("the index, `session.json`", [files.answer_index, files.session]),
        ("the index", [files.answer_index]),
        ("nothing", []),
    ):
        openings = []
        for _ in range(1 if missing else _NUM_OPENINGS):
            for file in missing:
                file.unlink(missing_ok=True)
            openings.append(_in_a_process_of_its_own(folder, size))
        rows.append(_row(size, files.answers.stat().st_size, name, openings))
    shutil.rmtree(folder)
    return rows


def _row(size: int, journal_bytes: int, name: str, openings: list[_Opening]) -> list[str]:
    return [
        f"{size:,}",
        f"{journal_bytes / 1e6:,.1f} MB",
        name,
        in_unit(median(each.open_seconds for each in openings)),
        in_unit(median(each.answer_seconds for each in openings)),
        f"{median(each.peak_bytes for each in openings) / _MIB:+,.1f} MiB",
        f"{median(each.kept_bytes for each in openings) / _MIB:+,.1f} MiB",
    ]


def _in_a_process_of_its_own(folder: Path, size: int) -> _Opening:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_opened, folder, made_key(size // 2)).result()


def _opened(folder: Path, key: str) -> _Opening:
    resident = psutil.Process().memory_info().rss
    begun = perf_counter()
    tracker = new_tracker(folder)
    opened = perf_counter()
    answer = tracker.responses.read(key)
    answered = perf_counter()
    opening = _Opening(
        open_seconds=opened - begun,
        answer_seconds=answered - opened,
        peak_bytes=_peak_bytes() - resident,
        kept_bytes=psutil.Process().memory_info().rss - resident,
    )
    tracker.close()
    if answer is None:
        raise AssertionError("The answer was not found.")
    return opening


def _peak_bytes() -> int:
    """The most memory that was ever resident in this process."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        # Bytes on macOS. On Linux it would begin with the parent's.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
