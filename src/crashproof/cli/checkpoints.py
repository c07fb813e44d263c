"""The checkpoints of a run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from crashproof.checkpoints.digest import size_of
from crashproof.checkpoints.verify import problem_with
from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.cli.status import RestartPoint, restart_point
from crashproof.cli.tables import aligned, short_duration
from crashproof.disk.run_folder import RunFolder, is_remote
from crashproof.formatting import as_bytes
from crashproof.reading.run_reader import RunReader
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import CheckpointRemoved
from crashproof.records.session import TrainingSession

__all__ = ["checkpoints"]

_HEADS = ("path", "step", "size", "age", "loss", "attempt", "state", "tags")
_TO_THE_RIGHT = frozenset({1, 2, 3, 4, 5})


def checkpoints(
    folder: Folder,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte of all of them, not only of the one to resume from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the checkpoints of a run, and say which one a restart resumes.

    Works on a live run and changes nothing. `whole` was read back and compared
    with its digest; `recorded` is there with the right size and was not read.

    Example: crashproof checkpoints runs/quickstart --verify
    """
    reader = RunReader.open(folder)
    session = reader.session()
    resume = restart_point(reader, session)
    answer = {"resume": resume, "checkpoints": _rows(reader, session, resume, reads_all=verify)}
    if as_json:
        print_json(answer)
        return
    for line in _in_words(answer, folder, time.time()):
        say(line)


def _rows(
    reader: RunReader, session: TrainingSession, resume: RestartPoint, *, reads_all: bool
) -> list[dict[str, Any]]:
    refused = dict(resume.passed_over)
    rows = []
    for each in [*session.checkpoints.values(), *session.checkpoints_beside]:
        is_resumed = (each.checkpoint_step, each.checkpoint_path) == (resume.step, resume.checkpoint)
        state, problem = _state(each, reader.folder, reads_all=reads_all, is_resumed=is_resumed, refused=refused)
        is_superseded = (
            each.checkpoint_step in session.checkpoints_superseded
            and session.checkpoints.get(each.checkpoint_step) is each
        )
        rows.append(
            {
                "step": each.checkpoint_step,
                "path": each.checkpoint_path,
                "num_bytes": each.num_bytes,
                "created_at": each.created_at,
                "loss": each.metrics.loss if each.metrics else None,
                "evaluation": each.evaluation or {},
                "tags": each.recovery_tags,
                "attempt": each.attempt,
                "state": state,
                "problem": problem,
                "is_superseded": is_superseded,
                "is_resumed": is_resumed,
            }
        )
    rows += [
        _gone(each.checkpoint_step, each.checkpoint_path, "set aside", each.reason)
        for each in session.checkpoints_set_aside
    ]
    named = {each["path"] for each in rows}
    removed = {
        (each.step, each.checkpoint_path): None
        for event in reader.events()
        if isinstance(event, CheckpointRemoved)
        for each in event.checkpoints
    }
    rows += [_gone(step, path, "removed", None) for step, path in removed if path not in named]
    return sorted(rows, key=lambda row: (row["step"], row["created_at"] or 0.0))


def _gone(step: int, path: str, state: str, problem: str | None) -> dict[str, Any]:
    unknown = dict.fromkeys(("num_bytes", "created_at", "loss", "attempt"))
    return {
        "step": step,
        "path": path,
        **unknown,
        "evaluation": {},
        "tags": [],
        "state": state,
        "problem": problem,
        "is_superseded": False,
        "is_resumed": False,
    }


def _state(
    checkpoint: CheckpointMetadata, folder: RunFolder, *, reads_all: bool, is_resumed: bool, refused: dict[str, str]
) -> tuple[str, str | None]:
    """What is known of its bytes, and what is wrong with them."""
    if is_resumed:
        return ("whole" if checkpoint.is_verifiable else "unverified"), None
    problem = refused.get(checkpoint.checkpoint_path)
    if problem is None and reads_all:
        problem = problem_with(checkpoint, folder)
        if problem is None:
            return "whole", None
    problem = problem or _problem_seen_from_outside(checkpoint, folder)
    if problem is None:
        return ("recorded" if checkpoint.is_verifiable else "unverified"), None
    if problem == "it is missing":
        return "missing", problem
    return ("unverified" if "cannot be verified" in problem else "damaged"), problem


def _problem_seen_from_outside(checkpoint: CheckpointMetadata, folder: RunFolder) -> str | None:
    if checkpoint.num_bytes is None or is_remote(checkpoint.checkpoint_path):
        return None
    path = folder.find(checkpoint.checkpoint_path)
    try:
        if not path.exists():
            return "it is missing"
        size = size_of(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None if size == checkpoint.num_bytes else f"it has {size:,} bytes instead of {checkpoint.num_bytes:,}"


def _in_words(answer: dict[str, Any], folder: Path, now: float) -> list[str]:
    rows, resume = answer["checkpoints"], answer["resume"]
    if not rows:
        return [f"{folder}: no checkpoint was recorded; a restart would begin at step 0."]
    width = shutil.get_terminal_size((80, 24)).columns
    lines = aligned([_HEADS, *(_cells(row, now) for row in rows)], right=_TO_THE_RIGHT, width=width)
    for row in rows:
        if row["problem"]:
            lines.append(f"  {row['path']}: {row['problem']}")
        if row["evaluation"]:
            results = ", ".join(f"{name} {value:.4g}" for name, value in row["evaluation"].items())
            lines.append(f"  step {row['step']:,}, measured on held-out data: {results}")
    if resume.checkpoint is not None:
        lines.append(f"A restart would resume (*) at step {resume.step:,} from {resume.checkpoint}.")
    elif resume.step is None:
        lines.append("A restart would stop with an error: no checkpoint can be used.")
    else:
        lines.append("A restart would begin at step 0.")
    return lines


def _cells(row: dict[str, Any], now: float) -> list[str]:
    state = f"{row['state']}, superseded" if row["is_superseded"] else row["state"]
    return [
        row["path"],
        f"{row['step']:,}",
        "-" if row["num_bytes"] is None else as_bytes(row["num_bytes"]),
        "-" if row["created_at"] is None else short_duration(now - row["created_at"]),
        "-" if row["loss"] is None else f"{row['loss']:.4g}",
        "-" if row["attempt"] is None else str(row["attempt"]),
        f"{state} *" if row["is_resumed"] else state,
        ",".join(row["tags"]),
    ]
