"""Cost of one update.

`python -m benchmarks.update_cost floor ours` measures those loggers alone, in more rounds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Section, in_unit
from benchmarks.loggers.choice import Choice, installed, missing_note
from benchmarks.loggers.measured import lowest, measure_in_turn

__all__ = ["measure"]

_NUM_ROUNDS = 3
_MANY_ROUNDS = 9
_MEDIAN, _P99, _P999, _LONGEST = range(4)


def measure(work: Path, *, is_full: bool) -> Section:
    """The caller's time for nine scalars a step, beside the least that could keep them and beside trackers."""
    return _section(work, installed(), num_rounds=_MANY_ROUNDS if is_full else _NUM_ROUNDS)


def _section(work: Path, choices: Sequence[Choice], *, num_rounds: int) -> Section:
    rounds = measure_in_turn("cost", choices, work, num_rounds=num_rounds)
    floor = rounds.get("floor")
    return Section(
        title="The caller's cost of `update_metrics`, beside trackers",
        columns=["", "p50", "ratio", "p99", "ratio", "p99.9", "ratio", "longest", "p50 at 1 ms", "ratio", "calls"],
        rows=[_row(choice, rounds[choice.name], floor or rounds[choice.name]) for choice in choices],
        notes=[
            "Nine scalars a step, in the caller's thread: calls one after the other for 1 s, then a step every 1 ms "
            f"for 1.5 s (or as fast as it goes, where that is slower). {num_rounds} rounds; in each round every "
            "logger has a process of its own, in turn, and a figure is the lowest of its rounds, the cost of an "
            "empty call taken off. Each logger with its settings as they come; the heartbeat syncs and writes "
            "snapshots meanwhile. The floor writes the fields of a metrics line from a dict that is there already, "
            "without a checksum. Where other programs share "
            "the cores, a tail is the time that they take.",
            *missing_note(),
            _goal(rounds) if floor and "ours" in rounds else "Goal: not asked for here, it needs `floor` and `ours`.",
        ],
    )


def _row(choice: Choice, rounds: list[dict[str, Any]], floor: list[dict[str, Any]]) -> list[str]:
    cells = [choice.title]
    for place in (_MEDIAN, _P99, _P999):
        value = _lowest(rounds, "flat", place)
        cells += [in_unit(value), f"{value / _lowest(floor, 'flat', place):.1f}x"]
    paced = _lowest(rounds, "paced", _MEDIAN)
    cells += [in_unit(_lowest(rounds, "flat", _LONGEST)), in_unit(paced)]
    return [*cells, f"{paced / _lowest(floor, 'paced', _MEDIAN):.1f}x", f"{min(each['calls'] for each in rounds):,}"]


def _goal(rounds: dict[str, list[dict[str, Any]]]) -> str:
    ours, floor = rounds["ours"], rounds["floor"]
    middle, tail = (_lowest(ours, "flat", each) / _lowest(floor, "flat", each) for each in (_MEDIAN, _P999))
    return f"Goals: a median and a p99.9 of at most 2x the floor's. Here {middle:.2f}x and {tail:.2f}x."


def _lowest(rounds: list[dict[str, Any]], pace: str, place: int) -> float:
    return lowest(rounds, lambda each: each[pace][place])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="crashproof-bench-") as work:
        print(_section(Path(work), installed(sys.argv[1:]), num_rounds=_MANY_ROUNDS).markdown())
