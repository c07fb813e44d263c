"""Audit a run's journals and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from msgspec import Struct

from crashproof.checkpoints.added_files import added_files
from crashproof.checkpoints.delete import find_undeleted
from crashproof.checkpoints.verify import problem_with
from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say_lines
from crashproof.formatting import as_bytes, listing
from crashproof.reading.run_reader import RunReader
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["verify"]


class _Checked(Struct, frozen=True, kw_only=True):
    """A checkpoint that was read back."""

    step: int
    path: str
    num_bytes: int | None
    problem: str | None
    """None where it is intact."""
    added: list[str]
    """Files in its folder that were added since it was recorded: no part of it, and not read."""


class _Audit(Struct, frozen=True, kw_only=True):
    """What was found."""

    is_whole: bool
    is_live: bool
    checkpoints: list[_Checked]
    left_of_removals: list[str]
    """Paths that the retention rule has removed and that are still there."""
    journals: list[str]
    """What is damaged in them."""


def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Read every byte of the journals and checkpoints and report damage. Changes nothing.

    Exit codes: 0 all is intact; 1 something is damaged; 2 error.

    Example: crashproof verify runs/quickstart
    """
    audit = _audit(RunReader.open(folder))
    if as_json:
        print_json(audit)
    else:
        say_lines(_in_words(audit, folder))
    if not audit.is_whole:
        raise typer.Exit(1)


def _audit(reader: RunReader) -> _Audit:
    session = reader.session()
    checked = [
        _Checked(
            step=each.checkpoint_step,
            path=each.checkpoint_path,
            num_bytes=each.num_bytes,
            problem=problem_with(each, reader.folder),
            added=added_files(each, reader.folder),
        )
        for each in CheckpointCatalog(session).all()
    ]
    journals = reader.problems()
    return _Audit(
        is_whole=not journals and all(each.problem is None for each in checked),
        is_live=reader.holder() is not None,
        checkpoints=checked,
        left_of_removals=[each.checkpoint_path for each in find_undeleted(session, reader.folder)],
        journals=journals,
    )


def _in_words(audit: _Audit, folder: Path) -> Iterator[str]:
    for each in audit.checkpoints:
        size = "" if each.num_bytes is None else f" ({as_bytes(each.num_bytes)})"
        added = f" (added since it was recorded, no part of it: {listing(each.added)})" if each.added else ""
        yield f"  step {each.step:,}: {each.path}{size}: {each.problem or 'intact'}{added}"
    for path in audit.left_of_removals:
        yield f"  {path}: removed by the retention rule; the next start deletes what is left of it"
    for problem in audit.journals:
        yield f"  {problem}"
    if audit.is_whole:
        yield f"{folder} is intact: {len(audit.checkpoints)} checkpoints and all journals."
    else:
        yield (
            f"{folder} is damaged, and a restart skips the damage. `crashproof repair {folder}` quarantines it; "
            "restore missing files from a copy."
        )
