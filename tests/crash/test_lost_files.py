"""Files of a run are lost or outdated; no checkpoint is forgotten silently."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import RunReader, get_recovery_checkpoint
from crashproof.errors import InvalidMetric, NewerFormat, NoUsableCheckpoint, RunClosed
from crashproof.records.lines.checksummed_line import add_checksum


@pytest.fixture
def run(open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path) -> Path:
    """Ten steps, checkpoints at 5 and 10, closed."""
    tracker = open_tracker()
    for step in range(1, 11):
        update(tracker, step)
        if step % 5 == 0:
            (run_dir / f"checkpoint_{step}.pt").write_bytes(b"weights" * step)
            tracker.record_checkpoint(step, run_dir / f"checkpoint_{step}.pt", step)
    tracker.close()
    return run_dir


@pytest.mark.parametrize(
    "lost",
    [
        ["events.jsonl"],
        ["events.jsonl", "session.json"],
        ["events.jsonl", "metrics.jsonl"],
        ["events.jsonl", "metrics.jsonl", "session.json"],
    ],
    ids=["events", "events and session", "both journals", "all but the manifest"],
)
def test_checkpoints_whose_events_are_lost_are_still_offered(
    run: Path, open_tracker: Callable[..., Any], lost: list[str]
) -> None:
    for name in lost:
        (run / "progress" / name).unlink()

    tracker = open_tracker()
    offered = tracker.get_recovery_checkpoint()
    tracker.close()
    for name in ("session.json", "checkpoints.json"):
        (run / "progress" / name).unlink()

    assert 10 == offered.checkpoint_step
    assert (run / "checkpoint_10.pt", 10) == get_recovery_checkpoint(run)


def test_a_run_resumes_where_its_newest_attempt_was_not_where_a_superseded_one_had_been(
    run: Path, open_tracker: Callable[..., Any], update: Callable[..., None]
) -> None:
    tracker = open_tracker()
    for step in (6, 7):
        update(tracker, step)
    tracker.close()

    tracker = open_tracker()
    offered = tracker.get_recovery_checkpoint()
    for step in range(offered.checkpoint_step + 1, 13):
        update(tracker, step)

    assert 5 == offered.checkpoint_step
    assert list(range(1, 13)) == [line.step for line in RunReader.open(run).history()]


def test_a_superseded_checkpoint_is_better_than_none(
    run: Path, open_tracker: Callable[..., Any], update: Callable[..., None]
) -> None:
    tracker = open_tracker()
    update(tracker, 6)
    (run / "checkpoint_5.pt").unlink()

    assert 10 == tracker.get_recovery_checkpoint().checkpoint_step


def test_two_checkpoints_of_one_step_are_both_remembered(
    run: Path, open_tracker: Callable[..., Any], update: Callable[..., None]
) -> None:
    tracker = open_tracker()
    for step in (11, 12):
        update(tracker, step)
        for name in (f"checkpoint_{step}.pt", "best.pt"):
            (run / name).write_bytes(b"weights" * step)
            tracker.record_checkpoint(step, run / name, step)
    (run / "best.pt").write_bytes(b"torn")

    assert b"weights" * 12 == Path(tracker.get_recovery_checkpoint().checkpoint_path).read_bytes()
    # The bytes that were kept while its file is overwritten are gone too.
    shutil.rmtree(run / "progress" / "previous")
    assert str(run / "checkpoint_12.pt") == tracker.get_recovery_checkpoint().checkpoint_path
    for path in run.glob("checkpoint_*.pt"):
        path.unlink()
    with pytest.raises(NoUsableCheckpoint, match=r"checkpoint_12\.pt: it is missing.*checkpoint_11\.pt: it"):
        tracker.get_recovery_checkpoint()


@pytest.mark.parametrize("name", ["progress.json", "checkpoints.json", "session.json"])
def test_a_newer_snapshot_is_left_untouched(run: Path, open_tracker: Callable[..., Any], name: str) -> None:
    content = add_checksum(b'{"v":99,"brand_new":true}')
    (run / "progress" / name).write_bytes(content)

    with pytest.raises(NewerFormat, match="version 99"):
        open_tracker()

    assert content == (run / "progress" / name).read_bytes()


def test_files_outside_the_run_stay_where_they_are_however_they_are_spelled(
    run: Path, open_tracker: Callable[..., Any]
) -> None:
    shared = run.parent / "shared.pt"
    shared.write_bytes(b"somebody else's")
    tracker = open_tracker()
    tracker.record_checkpoint(10, run / ".." / "shared.pt", 10)
    tracker.close()

    open_tracker({"another": "config"}).close()

    assert b"somebody else's" == shared.read_bytes()


def test_archived_checkpoints_of_equal_names_stay_separate(run: Path, open_tracker: Callable[..., Any]) -> None:
    tracker = open_tracker()
    for step in (11, 12):
        path = run / f"step_{step}" / "model.pt"
        path.parent.mkdir()
        path.write_bytes(b"%d" % step)
        tracker.record_checkpoint(step, path, step)
    session_id = tracker.session.session_id
    tracker.close()
    open_tracker({"another": "config"}).close()

    archive = run / "progress" / "archive" / session_id

    assert (b"11", b"12") == tuple(
        (archive / "checkpoints" / f"step_{step}" / "model.pt").read_bytes() for step in (11, 12)
    )
    assert 12 == RunReader.open(archive).session().last_checkpoint_step


def test_the_run_folder_cannot_be_a_checkpoint(run: Path, open_tracker: Callable[..., Any]) -> None:
    tracker = open_tracker()

    with pytest.raises(InvalidMetric, match="holds the run's own files"):
        tracker.record_checkpoint(11, run, 11)

    assert 10 == tracker.get_recovery_checkpoint().checkpoint_step


def test_a_context_that_is_not_entered_refuses_to_record(tmp_path: Path) -> None:
    from crashproof import setup_progress_tracking

    progress = setup_progress_tracking({}, tmp_path / "out", 10)
    with pytest.raises(RunClosed, match="was not entered yet"):
        progress.update_metrics(1, 1.0, {}, 0.1, 1, 1)
    with progress:
        progress.update_metrics(1, 1.0, {}, 0.1, 1, 1)

    with pytest.raises(RunClosed, match="was left"):
        progress.record_api_response("key", {"text": "paid"}, 0.5)
    assert 1 == RunReader.open(tmp_path / "out").session().steps_completed
