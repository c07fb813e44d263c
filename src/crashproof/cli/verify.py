"""Audit a run's journals and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from crashproof.checkpoints.delete import find_undeleted
from crashproof.checkpoints.verify import problem_with
from crashproof.cli.output import print_json, say
from crashproof.formatting import as_bytes
from crashproof.reading.run_reader import RunReader

__all__ = ["verify"]


def verify(
    folder: Annotated[Path, typer.Argument(help="The run's output folder.", metavar="DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Read every byte of the journals and checkpoints and say what is broken. Changes nothing.

    Exits with 1 if anything is. Example: crashproof verify runs/quickstart
    """
    reader = RunReader.open(folder)
    answer = audit(reader)
    if as_json:
        print_json(answer)
    else:
        _say(answer, folder)
    if not answer["is_whole"]:
        raise typer.Exit(1)


def audit(reader: RunReader) -> dict[str, Any]:
    """Every checkpoint with its problem or None, and every damaged piece of a journal."""
    session = reader.session()
    checkpoints = [
        {
            "step": checkpoint.checkpoint_step,
            "path": checkpoint.checkpoint_path,
            "num_bytes": checkpoint.num_bytes,
            "problem": problem_with(checkpoint, reader.folder),
        }
        for checkpoint in sorted(
            [*session.checkpoints.values(), *session.checkpoints_beside], key=lambda each: each.checkpoint_step
        )
    ]
    journals = reader.problems()
    return {
        "is_whole": not journals and all(each["problem"] is None for each in checkpoints),
        "is_live": reader.holder() is not None,
        "checkpoints": checkpoints,
        "left_of_removals": [each.checkpoint_path for each in find_undeleted(session, reader.folder)],
        "journals": journals,
    }


def _say(answer: dict[str, Any], folder: Path) -> None:
    for each in answer["checkpoints"]:
        size = "" if each["num_bytes"] is None else f" ({as_bytes(each['num_bytes'])})"
        say(f"  step {each['step']:,}: {each['path']}{size}: {each['problem'] or 'whole'}")
    for path in answer["left_of_removals"]:
        say(f"  {path}: is not kept any more; the next start deletes what is left of it")
    for problem in answer["journals"]:
        say(f"  {problem}")
    if answer["is_whole"]:
        say(f"{folder} is whole: {len(answer['checkpoints'])} checkpoints and all journals.")
        return
    say(
        f"{folder} is damaged. `crashproof repair {folder}` sets aside what is broken; what is missing can only come "
        "back from a copy. A restart passes over both."
    )
