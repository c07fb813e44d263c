"""What `CheckpointRecorder` does is seen through the tracker; see also test_checkpoints.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast import RunReader
from holdfast.records import CheckpointRecorded, ResumeChosen


def test_a_checkpoint_carries_the_newest_update_and_the_time_it_took(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker()
    update(tracker, 3)
    (run_dir / "checkpoint_3.pt").write_bytes(b"weights")

    recorded = tracker.record_checkpoint(3, run_dir / "checkpoint_3.pt", 6, ["periodic", "best_loss"], seconds=2.5)

    (event,) = [each for each in RunReader.open(run_dir).events() if isinstance(each, CheckpointRecorded)]
    assert (recorded, 2.5) == (event.checkpoint, event.seconds)
    assert 3 == recorded.metrics.step
    assert ["periodic", "best_loss"] == recorded.recovery_tags


def test_what_an_attempt_starts_from_is_journalled(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker()
    update(tracker, 3)
    (run_dir / "checkpoint_3.pt").write_bytes(b"weights")
    tracker.record_checkpoint(3, run_dir / "checkpoint_3.pt", 6)

    offered = tracker.get_recovery_checkpoint()

    (event,) = [each for each in RunReader.open(run_dir).events() if isinstance(each, ResumeChosen)]
    assert (3, "checkpoint_3.pt", []) == (event.step, event.checkpoint_path, event.skipped)
    assert str(run_dir / "checkpoint_3.pt") == offered.checkpoint_path


def test_a_file_written_over_every_time_holds_the_newest_checkpoint_only(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker()
    for step in (1, 2):
        update(tracker, step)
        (run_dir / "latest.pt").write_bytes(b"weights" * step)
        tracker.record_checkpoint(step, run_dir / "latest.pt", step)

    assert [2] == list(tracker.session.checkpoints)
    assert 2 == tracker.get_recovery_checkpoint().checkpoint_step
