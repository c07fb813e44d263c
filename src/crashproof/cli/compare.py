"""Compare runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct

from crashproof.cli.arguments import AsJson, run_folders
from crashproof.cli.output import print_json, say_lines
from crashproof.cli.plots import LETTERS, plot_together
from crashproof.cli.tables import aligned, compact, dollars, terminal_width
from crashproof.errors import ConfigError
from crashproof.formatting import as_duration
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.records.curves import CurvePoint
from crashproof.rules.comparing import Difference, common_steps, config_differences
from crashproof.rules.pace import pace_of
from crashproof.rules.time_left.estimate import seconds_per_step

__all__ = ["compare"]

_NUM_COMMON_STEPS = 8
_AVERAGED = 100
_PLOT_HEIGHT = 14
_MOST_VALUE_WIDTH = 28


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Output folders.", metavar="DIR DIR…", autocompletion=run_folders)
    ],
    as_json: AsJson = False,
) -> None:
    """Compare the configs and results of runs.

    Losses are compared at equal steps: the loss of the step, and the mean of
    the last 100 updates. Works on live runs and changes nothing.

    Example: crashproof compare runs/lr-1e-3 runs/lr-3e-4
    """
    if len(folders) < 2:
        raise ConfigError("A comparison needs two runs or more.", hint="Pass two or more folders.")
    if len(folders) > len(LETTERS):
        raise ConfigError(f"At most {len(LETTERS)} runs can be compared.", hint="Pass fewer folders.")
    now = time.time()
    readers = [RunReader.open(folder) for folder in folders]
    sides = [_Side(str(folder), reader, now) for folder, reader in zip(folders, readers, strict=True)]
    differences = config_differences([side.session.config for side in sides])
    steps = common_steps([side.session.steps_completed for side in sides], _NUM_COMMON_STEPS)
    if as_json:
        print_json(_as_object(sides, differences, steps))
        return
    say_lines(_in_words(sides, differences, steps))


class _Best(Struct, frozen=True, kw_only=True):
    """The lowest finite loss."""

    step: int
    loss: float


class _AtStep(Struct, frozen=True, kw_only=True):
    """The losses at one step."""

    step: int
    loss: float | None
    """The newest at the step or before it."""
    mean_of_100: float | None
    """Of the finite losses of the last 100 updates."""


class _Side:
    """One of the runs."""

    def __init__(self, name: str, reader: RunReader, now: float) -> None:
        self.name = name
        self.session = reader.session()
        self.summary = reader.progress(now=now)
        self._follower = CurveFollower(reader.folder)
        self._follower.refresh()

    def curve(self, most_points: int, last_step: int | None = None) -> list[CurvePoint]:
        return self._follower.curve(most_points=most_points, last_step=last_step).points

    def best(self) -> _Best | None:
        """The lowest finite loss; looks closer at its part of the curve until that is one update."""
        first: int | None = None
        last: int | None = None
        while True:
            points = self._follower.curve(most_points=512, first_step=first, last_step=last).points
            lows = [(bucket.low, point) for point in points if (bucket := point.series.get("loss"))]
            finite = [(low, point) for low, point in lows if low is not None]
            if not finite:
                return None
            loss, point = min(finite, key=lambda each: each[0])
            if point.num_updates == 1 or (point.first_step, point.last_step) == (first, last):
                return _Best(step=point.last_step, loss=loss)
            first, last = point.first_step, point.last_step

    def at(self, step: int) -> _AtStep:
        num_updates = sum(point.num_updates for point in self.curve(1))
        usual = max(1, self.session.steps_completed // max(1, num_updates))
        first = max(0, step - 2 * _AVERAGED * usual)
        near = self._follower.curve(most_points=1 << 20, first_step=first, last_step=step).points[-_AVERAGED:]
        buckets = [bucket for point in near if (bucket := point.series.get("loss")) is not None]
        means = [bucket.mean for bucket in buckets if bucket.mean is not None]
        last = None if not buckets else float("nan") if buckets[-1].num_non_finite else buckets[-1].last
        return _AtStep(step=step, loss=last, mean_of_100=sum(means) / len(means) if means else None)

    def seconds_a_step(self) -> float | None:
        return seconds_per_step(pace_of(self.session))


def _as_object(sides: list[_Side], differences: list[Difference], steps: list[int]) -> dict[str, object]:
    return {
        "config_differences": differences,
        "runs": [
            {
                "name": side.name,
                "summary": side.summary,
                "best": side.best(),
                "seconds_a_step": side.seconds_a_step(),
                "at_common_steps": [side.at(step) for step in steps],
            }
            for side in sides
        ],
    }


def _in_words(sides: list[_Side], differences: list[Difference], steps: list[int]) -> list[str]:
    width = terminal_width()
    letters = [LETTERS[number] for number in range(len(sides))]
    lines = [f"{letter}  {side.name}" for letter, side in zip(letters, sides, strict=True)]
    lines += ["", "Differences of the configs:" if differences else "The configs are the same."]
    if differences:
        rows = [[each.key, *("(absent)" if v is None else _cut(v) for v in each.values)] for each in differences]
        lines += aligned([["", *letters], *rows], width=width)
    right = frozenset(range(1, len(sides) + 1))
    lines += ["", *aligned([["", *letters], *_side_by_side(sides)], right=right, width=width)]
    if steps:
        cells = [[f"{_number(at.loss)} ({_number(at.mean_of_100)})" for at in map(side.at, steps)] for side in sides]
        rows = [[f"step {compact(step)}", *row] for step, *row in zip(steps, *cells, strict=True)]
        lines += ["", "Loss at equal steps, and in parentheses the mean of the last 100 updates:"]
        lines += aligned([["", *letters], *rows], right=right, width=width)
    picture = plot_together([side.curve(width) for side in sides], width=min(width, 120), height=_PLOT_HEIGHT)
    return lines + (["", "Range of the loss (* marks several runs):", *picture] if picture else [])


def _side_by_side(sides: list[_Side]) -> list[list[str]]:
    summaries = [side.summary for side in sides]
    bests = [side.best() for side in sides]
    rows = [
        ["state", *(each.health.replace("_", " ") for each in summaries)],
        ["steps", *(f"{compact(e.steps_completed)}/{compact(e.total_steps_target)}" for e in summaries)],
        ["last loss", *(_number(each.loss_trend.current_loss) for each in summaries)],
        ["moving average", *(_number(each.loss_trend.moving_avg_loss) for each in summaries)],
        ["best loss", *("-" if best is None else f"{best.loss:.5g} at {compact(best.step)}" for best in bests)],
        ["verdict", *(each.loss_trend.verdict.replace("_", " ") for each in summaries)],
    ]
    measured = sorted({name for each in summaries for name in each.evaluation})
    rows += [[name, *(_number(each.evaluation.get(name)) for each in summaries)] for name in measured]
    rows += [
        ["seconds per step", *(_number(side.seconds_a_step()) for side in sides)],
        ["tokens per second", *(_number(each.throughput_tokens_per_sec) for each in summaries)],
        ["goodput", *(f"{100 * each.goodput_seconds.goodput_fraction:.1f} %" for each in summaries)],
        ["trained", *(as_duration(each.elapsed_wall_clock_hours * 3600) for each in summaries)],
        ["attempts", *(str(each.attempt) for each in summaries)],
        ["teacher cost", *(dollars(each.api_cost) for each in summaries)],
    ]
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_VALUE_WIDTH else f"{text[: _MOST_VALUE_WIDTH - 1]}…"
