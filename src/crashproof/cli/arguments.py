"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crashproof.disk.run_folder import RunFolder
from crashproof.reading.discovery import find_runs

__all__ = ["AsJson", "Folder", "run_folders"]

_MOST_COMPLETIONS = 200
_LEVELS = 3


def run_folders(incomplete: str) -> list[str]:
    """Complete a path to the runs that it may mean, some folders further down included."""
    typed_folder, _, beginning = incomplete.rpartition("/")
    prefix = f"{typed_folder}/" if "/" in incomplete else ""
    try:
        children = sorted(
            each.name
            for each in Path(prefix or ".").iterdir()
            if each.name.startswith(beginning) and (beginning or not each.name.startswith(".")) and each.is_dir()
        )
    except OSError:
        return []
    found: list[str] = []
    for child in children:
        path = f"{prefix}{child}"
        if RunFolder.under(Path(path)).holds_a_run:
            found.append(path)
        else:
            found += [f"{path}/{name}" for name, _ in find_runs(Path(path), deepest=_LEVELS)]
        if len(found) >= _MOST_COMPLETIONS:
            break
    return found[:_MOST_COMPLETIONS]


Folder = Annotated[Path, typer.Argument(help="The run's output folder.", metavar="DIR", autocompletion=run_folders)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
