"""The checkpoints of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from msgspec import Struct

from crashproof.checkpoints.on_record import is_as_verified
from crashproof.checkpoints.verify import MISSING, Verification, problem_at_a_glance, problem_with
from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say, say_lines
from crashproof.cli.status import RestartPoint, restart_point
from crashproof.cli.tables import aligned, named_values, short_duration, terminal_width
from crashproof.disk.run_folder import RunFolder, is_remote
from crashproof.formatting import as_bytes
from crashproof.reading.run_reader import RunReader
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import CheckpointRemoved
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["checkpoints"]

_HEADS = ("path", "step", "size", "age", "loss", "attempt", "state", "tags")
_RIGHT = frozenset({1, 2, 3, 4, 5})


class _State(StrEnum):
    """What is known of a checkpoint's bytes."""

    INTACT = "intact"
    """Read back now, and equal to what was saved."""
    VERIFIED = "verified"
    """Read back earlier, and its files are unchanged since; not read now."""
    RECORDED = "recorded"
    """There, with the right size; not read."""
    UNVERIFIED = "unverified"
    """Without a checksum to compare with."""
    DAMAGED = "damaged"
    MISSING = "missing"
    QUARANTINED = "quarantined"
    REMOVED = "removed"
    """Deleted by the retention rule."""


_RESUMED = {
    Verification.NOW: _State.INTACT,
    Verification.ON_RECORD: _State.VERIFIED,
    Verification.NONE: _State.UNVERIFIED,
}


class _Row(Struct, frozen=True, kw_only=True):
    """One checkpoint of the list."""

    step: int
    path: str
    num_bytes: int | None = None
    created_at: float | None = None
    """Seconds since 1970."""
    loss: float | None = None
    evaluation: dict[str, float] = {}
    tags: list[str] = []
    attempt: int | None = None
    state: _State
    problem: str | None = None
    is_superseded: bool = False
    """Left behind by an attempt that resumed from an earlier step."""
    is_resumed: bool = False
    """A restart resumes from it."""


def checkpoints(
    folder: Folder,
    verify: Annotated[bool, typer.Option("--verify", help="Read and verify every checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the checkpoints of a run and the one that a restart would resume from.

    Works on a live run and changes nothing. States: `intact` was read now and
    matches its checksum; `verified` did so earlier, and has the size, time and
    inode that it had then; `recorded` exists with the right size and was not
    read; `unverified` has no checksum to compare with.

    Example: crashproof checkpoints runs/quickstart --verify
    """
    reader = RunReader.open(folder)
    session = reader.session()
    restart = restart_point(reader, session, trusts_record=not verify)
    known = [*_recorded(reader, session, restart, reads_all=verify), *_quarantined(session)]
    rows = [*known, *_removed(reader, {row.path for row in known})]
    rows.sort(key=lambda row: (row.step, row.created_at or 0.0))
    if as_json:
        print_json({"resume": restart, "checkpoints": rows})
    elif not rows:
        say(f"{folder}: a restart {restart.in_words}.")
    else:
        say_lines(_in_words(rows, restart, time.time()))


def _recorded(
    reader: RunReader, session: TrainingSession, restart: RestartPoint, *, reads_all: bool
) -> Iterator[_Row]:
    refused = dict(restart.passed_over)
    catalog = CheckpointCatalog(session)
    for each in catalog.all():
        is_resumed = (each.checkpoint_step, each.checkpoint_path) == (restart.step, restart.checkpoint)
        if is_resumed:
            state, problem = _RESUMED[restart.verification], None
        else:
            state, problem = _check(each, reader.folder, reads_all=reads_all, refused=refused)
        yield _Row(
            step=each.checkpoint_step,
            path=each.checkpoint_path,
            num_bytes=each.num_bytes,
            created_at=each.created_at,
            loss=each.metrics.loss if each.metrics else None,
            evaluation=each.evaluation or {},
            tags=each.recovery_tags,
            attempt=each.attempt,
            state=state,
            problem=problem,
            is_superseded=catalog.is_abandoned(each),
            is_resumed=is_resumed,
        )


def _quarantined(session: TrainingSession) -> Iterator[_Row]:
    for each in CheckpointCatalog(session).quarantined():
        yield _Row(
            step=each.checkpoint_step, path=each.checkpoint_path, state=_State.QUARANTINED, problem=each.reason
        )


def _removed(reader: RunReader, known: set[str]) -> list[_Row]:
    removed = {
        (each.step, each.checkpoint_path): None
        for event in reader.events()
        if isinstance(event, CheckpointRemoved)
        for each in event.checkpoints
    }
    return [_Row(step=step, path=path, state=_State.REMOVED) for step, path in removed if path not in known]


def _check(
    checkpoint: CheckpointMetadata, folder: RunFolder, *, reads_all: bool, refused: dict[str, str]
) -> tuple[_State, str | None]:
    """What is known of its bytes, and what is wrong with them."""
    problem = refused.get(checkpoint.checkpoint_path)
    if problem is None and reads_all:
        problem = problem_with(checkpoint, folder)
        if problem is None:
            return _State.INTACT, None
    if problem is None and is_as_verified(checkpoint, folder.find(checkpoint.checkpoint_path)):
        return _State.VERIFIED, None
    if problem is None and checkpoint.num_bytes is not None and not is_remote(checkpoint.checkpoint_path):
        problem = problem_at_a_glance(checkpoint, folder)
    if problem is None:
        return (_State.RECORDED if checkpoint.is_verifiable else _State.UNVERIFIED), None
    if problem == MISSING:
        return _State.MISSING, problem
    return (_State.UNVERIFIED if "cannot be verified" in problem else _State.DAMAGED), problem


def _in_words(rows: Sequence[_Row], restart: RestartPoint, now: float) -> Iterator[str]:
    yield from aligned([_HEADS, *(_cells(row, now) for row in rows)], right=_RIGHT, width=terminal_width())
    for row in rows:
        if row.problem:
            yield f"  {row.path}: {row.problem}"
        if row.evaluation:
            yield f"  evaluation at step {row.step:,}: {named_values(row.evaluation)}"
    yield f"A restart {restart.in_words}{' (*)' if restart.checkpoint else ''}."


def _cells(row: _Row, now: float) -> list[str]:
    state = f"{row.state}{', superseded' if row.is_superseded else ''}{' *' if row.is_resumed else ''}"
    return [
        row.path,
        f"{row.step:,}",
        "-" if row.num_bytes is None else as_bytes(row.num_bytes),
        "-" if row.created_at is None else short_duration(now - row.created_at),
        "-" if row.loss is None else f"{row.loss:.4g}",
        "-" if row.attempt is None else str(row.attempt),
        state,
        ",".join(row.tags),
    ]
