"""The updates of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Annotated

import msgspec
import typer

from crashproof.cli.arguments import Folder
from crashproof.cli.output import clean, print_json_line, print_line, say
from crashproof.cli.tables import local_clock, terminal_width
from crashproof.disk.journal import scan_backwards
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import ConfigError
from crashproof.reading.run_reader import RunReader
from crashproof.reading.step_index import StepIndex, WantedSteps
from crashproof.records.lines.codec import decode_line
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.metrics import COLUMNS, MetricsSnapshot
from crashproof.rules.history import are_parts, with_part

__all__ = ["history"]

_decoder = LazyDecoder[MetricsSnapshot](MetricsSnapshot)
_SUPERSEDED = "  superseded"
_TIME = "%m-%d %H:%M:%S"
_PLAIN_WIDTH = 55
_COMPONENT_WIDTH = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    update: MetricsSnapshot
    is_superseded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Which updates to show."""

    first: int | None = None
    last: int | None = None
    steps_apart: int = 1
    newest: int | None = None
    has_superseded: bool = False


def history(
    folder: Folder,
    first: Annotated[int | None, typer.Option("--from", metavar="STEP", help="Begin at this step.")] = None,
    last: Annotated[int | None, typer.Option("--to", metavar="STEP", help="End with this step.")] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Show updates at least N steps apart.")] = 1,
    newest: Annotated[int | None, typer.Option("--last", min=1, metavar="N", help="Show the newest N.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="Include recomputed updates, marked as superseded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: one object per update.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values with a header.")] = False,
) -> None:
    """Print the history of a run: each step once, in order, from the newest attempt.

    Works on a live run, changes nothing, and needs little memory. In JSON,
    NaN and infinities are null, with their names in "nonfinite".

    Example: crashproof history runs/quickstart --last 20

    Example: crashproof history runs/quickstart --json | jq .loss
    """
    if as_json and as_csv:
        raise ConfigError("--json and --csv cannot be combined.", hint="Pass one of them.")
    reader = RunReader.open(folder)
    wanted = _Wanted(first=first, last=last, steps_apart=every, newest=newest, has_superseded=is_all)
    if as_json:
        for row in _rows(reader, wanted):
            print_json_line(_as_object(row, marked=is_all))
    elif as_csv:
        _print_csv(reader, wanted)
    else:
        _print_table(_rows(reader, wanted), marked=is_all)


def _rows(reader: RunReader, wanted: _Wanted) -> Iterator[_Row]:
    if wanted.newest is not None:
        newest = _apart(_between(_backwards(reader.folder, wanted), wanted), wanted.steps_apart)
        return reversed(list(islice(newest, wanted.newest)))
    if wanted == _Wanted():
        return (_Row(update=each) for each in reader.history())
    steps = WantedSteps(
        first=wanted.first, last=wanted.last, apart=wanted.steps_apart, has_superseded=wanted.has_superseded
    )
    found = StepIndex(reader.folder).updates(steps)
    return (_Row(update=each.update, is_superseded=each.is_superseded) for each in found)


def _backwards(folder: RunFolder, wanted: _Wanted) -> Iterator[_Row]:
    if not folder.metrics.exists():
        return
    lowest: float = float("inf")
    for update in _updates_backwards(folder):
        is_superseded = update.step >= lowest
        lowest = min(lowest, update.step)
        if not is_superseded or wanted.has_superseded:
            yield _Row(update=update, is_superseded=is_superseded)
        # An earlier line counts only where its step is below all later ones.
        if wanted.first is not None and lowest <= wanted.first and not wanted.has_superseded:
            return


def _updates_backwards(folder: RunFolder) -> Iterator[MetricsSnapshot]:
    """The newest first, each with all its parts."""
    waiting: MetricsSnapshot | None = None
    for line in scan_backwards(folder.metrics, end=folder.metrics.stat().st_size):
        update = decode_line(folder.metrics, line.content, _decoder)
        if waiting is not None and are_parts(update, waiting):
            waiting = with_part(update, waiting)
            continue
        if waiting is not None:
            yield waiting
        waiting = update
    if waiting is not None:
        yield waiting


def _between(rows: Iterable[_Row], wanted: _Wanted) -> Iterator[_Row]:
    for row in rows:
        step = row.update.step
        if (wanted.first is None or step >= wanted.first) and (wanted.last is None or step <= wanted.last):
            yield row


def _apart(rows: Iterable[_Row], steps: int) -> Iterator[_Row]:
    """Rows at least so many steps apart, in either direction."""
    shown: int | None = None
    for row in rows:
        if shown is None or abs(row.update.step - shown) >= steps:
            shown = row.update.step
            yield row


def _as_object(row: _Row, *, marked: bool) -> dict[str, object]:
    names = (name for name in MetricsSnapshot.__struct_fields__ if name != "nonfinite")
    fields = {name: value for name in names if (value := getattr(row.update, name)) is not msgspec.UNSET}
    return fields | {"is_superseded": row.is_superseded} if marked else fields


def _print_csv(reader: RunReader, wanted: _Wanted) -> None:
    # The header needs all names: one more pass keeps memory constant.
    components = dict.fromkeys(name for row in _rows(reader, wanted) for name in row.update.loss_components)
    names = [f"loss_components.{name}" for name in components]
    marks = ["is_superseded"] if wanted.has_superseded else []
    _print_csv_line([*COLUMNS, *names, *marks])
    for row in _rows(reader, wanted):
        values = [getattr(row.update, name) for name in COLUMNS]
        values += [row.update.loss_components.get(name) for name in components]
        _print_csv_line([*map(_csv_cell, values), *([str(row.is_superseded).lower()] if marks else [])])


def _csv_cell(value: float | None) -> str:
    if value is None:
        return ""
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))


def _print_csv_line(cells: list[str]) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(map(clean, cells))
    print_line(line.getvalue())


def _print_table(rows: Iterator[_Row], *, marked: bool) -> None:
    beginning = next(rows, None)
    if beginning is None:
        say("No updates.")
        return
    room = terminal_width() - _PLAIN_WIDTH - marked * len(_SUPERSEDED)
    components = list(beginning.update.loss_components)[: max(0, room // _COMPONENT_WIDTH)]
    heads = "".join(f" {clean(name)[:10]:>10}" for name in components)
    say(f"{'step':>11} {'attempt':>7} {'time':<14} {'loss':>10} {'rate':>9}{heads}")
    for row in chain([beginning], rows):
        update = row.update
        line = (
            f"{update.step:>11,} {update.attempt:>7} {local_clock(update.timestamp, _TIME):<14} {update.loss:>10.5g}"
        )
        line += f" {update.learning_rate:>9.3g}"
        line += "".join(f" {_number(update.loss_components.get(name))}" for name in components)
        print_line(f"{line}{_SUPERSEDED}" if row.is_superseded else line)


def _number(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.5g}"
