"""Mend a run and say what was set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crashproof.cli.output import print_json, say
from crashproof.errors import RunInUse
from crashproof.reading.run_reader import RunReader
from crashproof.tracking.repair import repair_run

__all__ = ["repair"]


def repair(
    folder: Annotated[Path, typer.Argument(help="The run's output folder.", metavar="DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Move damaged journal lines and checkpoints aside and rebuild every snapshot from the journals.

    Nothing is deleted. Refuses while the run is being written. Example: crashproof repair runs/quickstart
    """
    reader = RunReader.open(folder)
    holder = reader.holder()
    if holder is not None:
        raise RunInUse(folder, host=holder.host, pid=holder.pid)
    repairs = repair_run(reader.folder)
    if as_json:
        print_json({"set_aside": repairs, "set_aside_folder": str(reader.folder.quarantine)})
        return
    for each in repairs:
        say(f"  {each}")
    say(
        f"{folder}: {len(repairs)} damaged piece(s) are in {reader.folder.quarantine}; snapshots are rebuilt."
        if repairs
        else f"{folder}: nothing was damaged; snapshots are rebuilt."
    )
