"""CPU time of one update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures import Section, in_unit
from benchmarks.loggers.choice import NOTHING, Choice, installed, missing_note
from benchmarks.loggers.measured import lowest, measure_in_turn

__all__ = ["measure"]

_NUM_ROUNDS = 3


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """What all threads and child processes of a logger use, for each step."""
    choices = [NOTHING, *installed()]
    rounds = measure_in_turn("cpu", choices, work, num_rounds=_NUM_ROUNDS)
    return Section(
        title="CPU a step of the whole process",
        columns=["", "flat out", "ratio", "a step every 1 ms", "ratio"],
        rows=[_row(choice, rounds[choice.name], rounds["floor"]) for choice in choices],
        notes=[
            "User and system time of all threads and of child processes, over the steps of 1 s flat out, or of "
            "1.5 s at 1 ms, and 1 s after them for what goes on in the background; opening and closing are not in "
            "it. The loop itself is, and has a row: at 1 ms it is mostly its sleeping. The lowest of "
            f"{_NUM_ROUNDS} rounds in turn, each logger in a process of its own.",
            *missing_note(),
            "Goal: below every tracker's.",
        ],
    )


def _row(choice: Choice, rounds: list[dict[str, Any]], floor: list[dict[str, Any]]) -> list[str]:
    cells = [choice.title]
    for pace in ("flat", "paced"):
        seconds, least = (lowest(each, lambda one, pace=pace: one[pace]) for each in (rounds, floor))
        cells += [in_unit(seconds), f"{seconds / least:.1f}x"]
    return cells
