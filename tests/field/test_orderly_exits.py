"""A loop that leaves by an exit; the attempt ends as the shell is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crashproof import RunReader, TrackerSettings, training_progress_context
from crashproof.records.states import AttemptState


def leave(run_dir: Path, exit_by: Callable[[], object]) -> tuple[AttemptState, str | None]:
    settings = TrackerSettings(has_heartbeat=False)
    with (
        pytest.raises((SystemExit, KeyboardInterrupt)),
        training_progress_context({"lr": 1}, run_dir, 10, settings=settings) as progress,
    ):
        progress.update_metrics(1, 1.0, {}, 0.1, 1, 1)
        exit_by()
    (attempt,) = RunReader.open(run_dir).session().attempts
    return attempt.how, attempt.error


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("exit_by", [lambda: sys.exit(0), lambda: sys.exit(), lambda: sys.exit(None)])
def test_an_exit_without_an_error_is_an_orderly_end(run_dir: Path, exit_by: Callable[[], object]) -> None:
    assert (AttemptState.COMPLETED, None) == leave(run_dir, exit_by)


@pytest.mark.parametrize(
    ("exit_by", "error"),
    [
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: sys.exit("no data"), "SystemExit: no data"),
        (interrupt, "KeyboardInterrupt: "),
    ],
    ids=["a code", "a message", "an interrupt"],
)
def test_any_other_exit_is_an_error(run_dir: Path, exit_by: Callable[[], object], error: str) -> None:
    assert (AttemptState.RAISED, error) == leave(run_dir, exit_by)
