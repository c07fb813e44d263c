"""What `CheckpointRecorder` does is seen through the tracker; see also test_checkpoints.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import RunReader
from holdfast.checkpoints import digest_of, digest_of_files
from holdfast.records import CheckpointRecorded, FileDigest, ResumeChosen


def test_a_checkpoint_carries_the_update_of_its_step_and_the_time_it_took(
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


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(6, 6, id="of its own step"),
        pytest.param(5, 4, id="the newest before it where its own was not reported"),
        pytest.param(1, None, id="none where all came later"),
    ],
)
def test_a_checkpoint_recorded_behind_the_training_carries_the_update_of_its_own_step(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path, step: int, expected: int | None
) -> None:
    tracker = open_tracker()
    for reported in (2, 4, 6, 8, 10):
        update(tracker, reported)
    (run_dir / "late.pt").write_bytes(b"weights")

    recorded = tracker.record_checkpoint(step, run_dir / "late.pt", step)

    assert expected == (recorded.metrics and recorded.metrics.step)


def test_of_a_folder_digested_on_its_way_nothing_is_read_again(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker()
    update(tracker, 1)
    # Not there yet: whoever would read it could not.
    files = {"shard_1": FileDigest(num_bytes=4, sha256="ab"), "shard_0": FileDigest(num_bytes=3, sha256="cd")}

    recorded = tracker.record_checkpoint(1, run_dir / "checkpoint_1", 8, written=digest_of_files(files))

    assert (7, ["shard_0", "shard_1"]) == (recorded.num_bytes, list(recorded.files))


def test_the_digest_made_of_files_is_that_of_the_folder(run_dir: Path) -> None:
    (run_dir / "deep").mkdir(parents=True)
    for name in ("b", "a", "deep/c", "deep.d"):
        (run_dir / name).write_bytes(name.encode())
    read = digest_of(run_dir)

    assert read == digest_of_files(dict(reversed(read.files.items())))


def test_the_best_checkpoint_is_told_by_the_losses(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path, device: Any
) -> None:
    tracker = open_tracker()
    device.has_to_be_waited_for = True
    tags = []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.0], start=1):
        # The last loss is still on its way when the checkpoint is recorded.
        update(tracker, step, device.tensor(loss) if step == 4 else loss)
        (run_dir / f"{step}.pt").write_bytes(b"weights")
        tags.append(tracker.record_checkpoint(step, run_dir / f"{step}.pt", step, is_best=None).recovery_tags)

    both = ["periodic", "best_loss"]
    assert [both, both, ["periodic"], both] == tags


def test_a_tag_stands_once(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    tracker = open_tracker()
    (run_dir / "1.pt").write_bytes(b"weights")

    recorded = tracker.record_checkpoint(1, run_dir / "1.pt", 1, ["best_loss"], is_best=True)

    assert ["best_loss"] == recorded.recovery_tags
