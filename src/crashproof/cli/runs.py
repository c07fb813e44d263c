"""All runs under a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from crashproof.cli.output import print_json, say
from crashproof.cli.tables import aligned, compact, short_duration
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CrashproofError, NotAFolder, NotARun
from crashproof.formatting import as_dollars_text
from crashproof.reading.discovery import find_runs
from crashproof.reading.run_state import read_run
from crashproof.rules.summary import progress_summary

__all__ = ["runs"]

_HEADS = ("run", "state", "step", "loss", "verdict", "left", "cost", "age")
_TO_THE_RIGHT = frozenset({2, 3, 5, 6, 7})


def runs(
    root: Annotated[Path, typer.Argument(help="The folder that the runs lie in.", metavar="ROOT")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """List all runs under ROOT, the newest first. Works on live runs and changes nothing.

    A run that cannot be read is a row that says why. A `!` behind the state:
    a journal is damaged, see `crashproof verify`.

    Example: crashproof runs runs
    """
    if not root.is_dir():
        raise NotAFolder(root)
    now = time.time()
    rows = sorted((_row(name, folder, now) for name, folder in find_runs(root)), key=_age)
    if as_json:
        print_json({"root": str(root.absolute()), "runs": rows})
    elif not rows:
        say(f"{root} holds no runs.")
    else:
        for line in _table(rows):
            say(line)


def _row(name: str, folder: RunFolder, now: float) -> dict[str, Any]:
    known = {"name": name, "path": str(folder.root), "error": None, "seconds_since_sign_of_life": None}
    try:
        return known | _facts(folder, now)
    except CrashproofError as error:
        reason = error.message
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:
        # Whatever a run's files hold, the others have their rows.
        reason = f"{type(error).__name__}: {error}"
    return known | {"error": reason, "seconds_since_sign_of_life": _seconds_since_written(folder, now)}


def _facts(folder: RunFolder, now: float) -> dict[str, Any]:
    state = read_run(folder)
    if state.session is None:
        raise NotARun(folder.root)
    session = state.session
    is_alive = holder_of(folder.lock) is not None
    summary = progress_summary(session, now=now, wall_clock_hours=session.wall_clock_hours, is_alive=is_alive)
    last_seen = max((each.last_seen for each in session.attempts), default=session.start_time)
    # The last line of a live run may be under way at this moment.
    damages = [each for pieces in state.damages.values() for each in pieces if not (is_alive and each.is_torn_tail)]
    fields: dict[str, Any] = msgspec.to_builtins(summary)
    return fields | {"seconds_since_sign_of_life": now - last_seen, "damaged_pieces": len(damages)}


def _seconds_since_written(folder: RunFolder, now: float) -> float | None:
    try:
        return now - folder.progress.stat().st_mtime
    except OSError:
        return None


def _age(row: dict[str, Any]) -> float:
    seconds = row["seconds_since_sign_of_life"]
    return float("inf") if seconds is None else float(seconds)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    width = shutil.get_terminal_size((80, 24)).columns
    whole = [row for row in rows if row["error"] is None]
    lines = aligned([_HEADS, *map(_cells, whole)], right=_TO_THE_RIGHT, width=width)
    by_name = dict(zip([row["name"] for row in whole], lines[1:], strict=True))
    shown = lines[:1] if whole else []
    for row in rows:
        shown.append(by_name.get(row["name"]) or f"{row['name']}: cannot be read: {row['error']}")
    return shown


def _cells(row: dict[str, Any]) -> list[str]:
    trend = row["loss_trend"]
    state = row["health"].replace("_", " ") + ("!" if row["damaged_pieces"] else "")
    left = row["estimated_remaining_hours"] if row["status"] == "running" else None
    return [
        row["name"],
        state,
        f"{compact(row['steps_completed'])}/{compact(row['total_steps_target'])}",
        f"{trend['current_loss']:.4g}" if trend["has_data"] else "-",
        trend["verdict"].replace("_", " "),
        short_duration(None if left is None else left * 3600),
        as_dollars_text(Decimal(repr(row["api_cost"]))) if row["api_cost"] else "-",
        short_duration(row["seconds_since_sign_of_life"]),
    ]
