"""What `CheckpointRecorder` does is seen through the tracker; see also test_checkpoints.py."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.checkpoints.digest import digest_of, digest_of_files
from crashproof.records.checkpoints import FileDigest
from crashproof.records.events import CheckpointRecorded, CheckpointRemoved, ResumeChosen
from crashproof.rules.retention import KeepBest, KeepLatest
from crashproof.testing import FaultyDisk, PowerLost, forget_open_runs


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
def test_an_asynchronous_checkpoint_has_the_update_of_its_own_step(
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
    files = {
        "shard_1": FileDigest(num_bytes=4, digest="blake3:ab"),
        "shard_0": FileDigest(num_bytes=3, digest="blake3:cd"),
    }

    recorded = tracker.record_checkpoint(1, run_dir / "checkpoint_1", 8, written=digest_of_files(files))

    assert (7, ["shard_0", "shard_1"]) == (recorded.num_bytes, list(recorded.files))


def test_the_digest_made_of_files_is_that_of_the_folder(run_dir: Path) -> None:
    (run_dir / "deep").mkdir(parents=True)
    for name in ("b", "a", "deep/c", "deep.d"):
        (run_dir / name).write_bytes(name.encode())
    read = digest_of(run_dir)

    assert read == digest_of_files(dict(reversed(read.files.items())))


def test_the_best_checkpoint_is_found_by_the_losses(
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


def test_a_tag_is_recorded_once(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    tracker = open_tracker()
    (run_dir / "1.pt").write_bytes(b"weights")

    recorded = tracker.record_checkpoint(1, run_dir / "1.pt", 1, ["best_loss"], is_best=True)

    assert ["best_loss"] == recorded.recovery_tags


KEEP_TWO = TrackerSettings(has_heartbeat=False, keep=KeepLatest(2))


@pytest.fixture
def train(update: Callable[..., None], save_checkpoint: Callable[..., Path]) -> Callable[..., None]:
    """Report steps and save at each, a file for each."""

    def steps(tracker: ProgressTracker, *steps: int, **given: Any) -> None:
        for step in steps:
            update(tracker, step)
            save_checkpoint(tracker, step, **given)

    return steps


def files_in(run_dir: Path) -> set[str]:
    return {path.name for path in run_dir.iterdir()} - {"progress"}


def removals(run_dir: Path) -> list[list[str]]:
    events = RunReader.open(run_dir).events()
    return [
        [each.checkpoint_path for each in event.checkpoints]
        for event in events
        if isinstance(event, CheckpointRemoved)
    ]


def test_checkpoints_that_are_not_kept_are_removed_once_a_newer_one_is_safe(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path, read_json: Callable[..., Any]
) -> None:
    tracker = open_tracker(settings=KEEP_TWO)
    train(tracker, 1, 2, 3, 4)

    assert {"checkpoint_3.pt", "checkpoint_4.pt"} == files_in(run_dir)
    assert ["3", "4"] == list(read_json(tracker.checkpoint_manifest)["checkpoints"])
    assert [["checkpoint_1.pt"], ["checkpoint_2.pt"]] == removals(run_dir)
    assert repr(tracker.session) == repr(RunReader.open(run_dir).session())


def test_without_a_rule_all_are_kept(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    train(open_tracker(), 1, 2, 3, 4)

    assert 4 == len(files_in(run_dir))


def test_the_best_by_an_evaluation_stay(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    rule = KeepLatest(1) | KeepBest(1, by="f1", higher_is_better=True)
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=rule))
    for step, score in enumerate([0.25, 0.75, 0.5, 0.5], start=1):
        train(tracker, step)
        # After the save: the newest one stays until the next, and is measured by then.
        tracker.record_evaluation(step, {"f1": score})

    assert {"checkpoint_2.pt", "checkpoint_4.pt"} == files_in(run_dir)


def test_all_of_a_sharded_checkpoint_is_removed(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker(settings=KEEP_TWO)
    for step in (1, 2, 3):
        update(tracker, step)
        (run_dir / f"checkpoint_{step}" / "deep").mkdir(parents=True)
        (run_dir / f"checkpoint_{step}" / "deep" / "shard").write_bytes(b"weights")
        tracker.record_checkpoint(step, run_dir / f"checkpoint_{step}", step)

    assert {"checkpoint_2", "checkpoint_3"} == files_in(run_dir)


def damage(path: Path) -> None:
    path.write_bytes(b"Weights of step 3")


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [damage, lose])
def test_a_damaged_new_checkpoint_removes_nothing(
    open_tracker: Callable[..., Any],
    train: Callable[..., None],
    update: Callable[..., None],
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
) -> None:
    tracker = open_tracker(settings=KEEP_TWO)
    train(tracker, 1, 2)
    update(tracker, 3)
    path = run_dir / "checkpoint_3.pt"
    path.write_bytes(b"weights of step 3")
    # Digested while it was written, to a disk that did not keep the bytes.
    written = digest_of(path)
    harm(path)
    tracker.record_checkpoint(3, path, 24, written=written)

    assert {"checkpoint_1.pt", "checkpoint_2.pt"} <= files_in(run_dir)
    assert [1, 2, 3] == list(tracker.session.checkpoints)
    assert "No checkpoint is removed because checkpoint_3.pt cannot be used" in caplog.text


def test_one_that_cannot_be_verified_does_not_cost_the_one_before_it(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)))
    train(tracker, 1, 2)
    tracker.record_checkpoint(3, "s3://bucket/checkpoint_3", 24)
    tracker.record_checkpoint(4, run_dir / "in_flight.pt", 32)

    assert {"checkpoint_2.pt"} == files_in(run_dir)
    assert 2 == tracker.get_recovery_checkpoint().checkpoint_step


def test_where_nothing_can_be_verified_nothing_is_removed(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)))
    for step in (1, 2, 3):
        tracker.record_checkpoint(step, run_dir / f"in_flight_{step}.pt", step)

    assert [1, 2, 3] == list(tracker.session.checkpoints)


def test_a_large_checkpoint_removes_others_once_it_was_digested(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    settings = TrackerSettings(has_heartbeat=False, keep=KeepLatest(1), large_checkpoint_bytes=10)
    tracker = open_tracker(settings=settings)
    train(tracker, 1, 2)
    before = files_in(run_dir)
    tracker.get_recovery_checkpoint()
    train(tracker, 3)

    assert {"checkpoint_1.pt", "checkpoint_2.pt"} == before
    assert {"checkpoint_2.pt", "checkpoint_3.pt"} == files_in(run_dir)


def outside(run_dir: Path) -> Path:
    return run_dir.parent / "elsewhere.pt"


def linked(run_dir: Path) -> Path:
    outside(run_dir).write_bytes(b"theirs")
    (run_dir / "link.pt").symlink_to(outside(run_dir))
    return run_dir / "link.pt"


def in_a_linked_folder(run_dir: Path) -> Path:
    (run_dir.parent / "their_folder").mkdir()
    (run_dir / "link").symlink_to(run_dir.parent / "their_folder")
    return run_dir / "link" / "weights.pt"


def link_to_a_folder(run_dir: Path) -> Path:
    (run_dir / "their_folder").mkdir()
    (run_dir / "link.pt").symlink_to(run_dir / "their_folder" / "weights.pt")
    return run_dir / "link.pt"


@pytest.mark.parametrize("place", [outside, linked, in_a_linked_folder, link_to_a_folder])
def test_what_lies_outside_the_run_or_is_a_link_is_never_removed(
    open_tracker: Callable[..., Any],
    train: Callable[..., None],
    save_checkpoint: Callable[..., Path],
    run_dir: Path,
    place: Callable[[Path], Path],
) -> None:
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)))
    path = save_checkpoint(tracker, 1, path=place(run_dir))
    train(tracker, 2, 3)

    assert path.exists()
    assert [1, 3] == list(tracker.session.checkpoints)


@pytest.mark.parametrize(
    ("stale", "kept"),
    [
        pytest.param("folder", "folder/best.pt", id="what stays lies in it"),
        pytest.param("folder/first.pt", "folder", id="it lies in what stays"),
    ],
)
def test_nothing_is_removed_that_shares_its_bytes_with_what_stays(
    open_tracker: Callable[..., Any], run_dir: Path, stale: str, kept: str
) -> None:
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)))
    (run_dir / "folder").mkdir()
    for name in ("first.pt", "best.pt"):
        (run_dir / "folder" / name).write_bytes(b"weights")
    tracker.record_checkpoint(1, run_dir / stale, 8)
    tracker.record_checkpoint(2, run_dir / kept, 16)

    assert {"first.pt", "best.pt"} == files_in(run_dir / "folder")
    assert [1, 2] == list(tracker.session.checkpoints)


class DiskThatRefuses(FaultyDisk):
    """Refuses some of its operations while it is switched to fail."""

    refusal: int | None = None
    refused: tuple[str, ...] = ()

    def _refuse(self, operation: str) -> None:
        if self.refusal is not None and operation in self.refused:
            raise OSError(self.refusal, os.strerror(self.refusal))

    def replace(self, source: Path, target: Path) -> None:
        if target.name.endswith("removed.crashproof-partial"):
            self._refuse("rename")
        super().replace(source, target)

    def remove_file(self, path: Path) -> None:
        if path.name.endswith("removed.crashproof-partial"):
            self._refuse("remove")
        super().remove_file(path)

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        if b"checkpoint_removed" in bytes(content):
            self._refuse("write")
        return super().write(file, content)


@pytest.fixture
def disk(run_dir: Path, tmp_path: Path) -> DiskThatRefuses:
    run_dir.mkdir()
    return DiskThatRefuses(run_dir, tmp_path / "scratch")


@pytest.mark.parametrize("refused", ["rename", "remove"])
def test_a_failed_deletion_is_logged_and_retried_at_the_next(
    open_tracker: Callable[..., Any],
    train: Callable[..., None],
    run_dir: Path,
    disk: DiskThatRefuses,
    caplog: pytest.LogCaptureFixture,
    refused: str,
) -> None:
    tracker = open_tracker(settings=KEEP_TWO, disk=disk)
    disk.refusal, disk.refused = errno.EIO, (refused,)
    train(tracker, 1, 2, 3)
    left = files_in(run_dir)
    disk.refusal = None
    train(tracker, 4)

    assert 3 == len(left)
    (told,) = [each for each in caplog.messages if "no longer kept" in each]
    assert told.startswith(
        f"Checkpoints that are no longer kept cannot be deleted: {run_dir}/checkpoint_1.pt cannot be written: "
        "Input/output error."
    )
    assert {"checkpoint_3.pt", "checkpoint_4.pt"} == files_in(run_dir)
    assert [["checkpoint_1.pt"], ["checkpoint_1.pt", "checkpoint_2.pt"]] == removals(run_dir)


@pytest.mark.parametrize("refused", ["rename", "remove"])
def test_a_deletion_that_failed_is_made_up_for_at_the_next_start(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path, disk: DiskThatRefuses, refused: str
) -> None:
    tracker = open_tracker(settings=KEEP_TWO, disk=disk)
    (run_dir / "deep").mkdir()
    disk.refusal, disk.refused = errno.EIO, (refused,)
    # In a folder of its own, where nobody looks for partial files.
    train(tracker, 1, path=run_dir / "deep" / "first.pt")
    train(tracker, 2, 3)
    tracker.close()
    left = files_in(run_dir / "deep")
    # Another config, so that the session which knows of it gives way.
    open_tracker({"lr": 1}).close()

    assert 1 == len(left)
    assert set() == files_in(run_dir / "deep")


def test_a_name_that_is_used_again_is_not_deleted(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path, disk: DiskThatRefuses
) -> None:
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)), disk=disk)
    disk.refusal, disk.refused = errno.EIO, ("rename",)
    train(tracker, 1, path=run_dir / "a.pt")
    train(tracker, 2, path=run_dir / "b.pt")
    train(tracker, 3, path=run_dir / "a.pt")
    tracker.close()

    assert 3 == open_tracker().get_recovery_checkpoint().checkpoint_step
    assert {"a.pt"} == files_in(run_dir)


def test_on_a_full_disk_nothing_is_removed_that_the_journal_cannot_tell(
    open_tracker: Callable[..., Any],
    train: Callable[..., None],
    run_dir: Path,
    disk: DiskThatRefuses,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = open_tracker(settings=KEEP_TWO, disk=disk)
    disk.refusal, disk.refused = errno.ENOSPC, ("write",)
    train(tracker, 1, 2, 3)
    kept = (files_in(run_dir), list(tracker.session.checkpoints))
    disk.refusal = None
    train(tracker, 4)

    assert ({"checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_3.pt"}, [1, 2, 3]) == kept
    assert 1 == caplog.text.count("No checkpoint is removed that the retention rule does not keep")
    assert {"checkpoint_3.pt", "checkpoint_4.pt"} == files_in(run_dir)


def test_an_archived_session_keeps_what_it_has_and_the_new_one_removes_its_own(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker(settings=KEEP_TWO)
    train(tracker, 1, 2, 3)
    tracker.close()
    archived = run_dir / "progress" / "archive" / tracker.session.session_id
    other = open_tracker({"lr": 1}, settings=KEEP_TWO)
    train(other, 1, 2, 3)

    assert ["checkpoint_2.pt", "checkpoint_3.pt"] == sorted(
        path.name for path in (archived / "checkpoints").iterdir()
    )
    assert {"checkpoint_2.pt", "checkpoint_3.pt"} == files_in(run_dir)


def test_threads_that_record_at_once_remove_each_once(
    open_tracker: Callable[..., Any], save_checkpoint: Callable[..., Path], run_dir: Path
) -> None:
    tracker = open_tracker(settings=KEEP_TWO)
    threads = [threading.Thread(target=save_checkpoint, args=(tracker, step)) for step in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    save_checkpoint(tracker, 13)

    removed = [path for paths in removals(run_dir) for path in paths]
    assert sorted(f"checkpoint_{step}.pt" for step in range(1, 12)) == sorted(removed)
    assert {"checkpoint_12.pt", "checkpoint_13.pt"} == files_in(run_dir)


def test_a_tracker_that_was_closed_while_a_checkpoint_was_read_back_removes_nothing(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    class ClosesMeanwhile(KeepLatest):
        def choose(self, checkpoints: Any) -> set[int]:
            known = list(checkpoints)
            if len(known) == 3:
                tracker.close()
            return super().choose(known)

    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=ClosesMeanwhile(2)))
    train(tracker, 1, 2, 3)

    assert 3 == len(files_in(run_dir))


def record_two(run_dir: Path, fails_at: int | None) -> tuple[int, int]:
    """Two checkpoints of which one goes; between which operations the second was recorded."""
    run_dir.mkdir(parents=True)
    disk = FaultyDisk(run_dir, run_dir.parent / "scratch", fails_at=fails_at)
    begun_at = 0
    try:
        tracker = ProgressTracker(
            run_dir / "progress",
            {},
            10,
            settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)),
            disk=disk,
        )
        for step in (1, 2):
            begun_at = disk.num_operations
            (run_dir / f"checkpoint_{step}").mkdir()
            (run_dir / f"checkpoint_{step}" / "shard").write_bytes(b"weights")
            tracker.record_checkpoint(step, run_dir / f"checkpoint_{step}", step)
    except PowerLost:
        forget_open_runs()
    return begun_at, disk.num_operations


def test_wherever_a_removal_is_cut_off_the_next_start_finishes_it(tmp_path: Path) -> None:
    begun_at, ended_at = record_two(tmp_path / "whole" / "run", None)
    states = set()
    for number in range(begun_at, ended_at):
        run_dir = tmp_path / str(number) / "run"
        record_two(run_dir, number)
        left = frozenset(files_in(run_dir))
        tracker = ProgressTracker(run_dir / "progress", {}, 10, settings=KEEP_TWO)

        named = frozenset(tracker.session.checkpoints)
        assert {f"checkpoint_{step}" for step in named} | {"checkpoint_2"} == files_in(run_dir)
        assert max(named) == tracker.get_recovery_checkpoint().checkpoint_step
        states.add((left, named))
        tracker.close()

    only_the_new = frozenset({2})
    whole = frozenset({"checkpoint_1", "checkpoint_2"})
    on_its_way_out = frozenset({".checkpoint_1.removed.crashproof-partial", "checkpoint_2"})
    assert {(whole, only_the_new), (on_its_way_out, only_the_new)} <= states


def test_a_checkpoint_that_comes_back_from_a_copy_is_not_taken_for_a_leftover(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker(settings=KEEP_TWO)
    train(tracker, 1, 2, 3)
    tracker.close()
    (run_dir / "checkpoint_1.pt").write_bytes(b"from a copy")
    open_tracker(settings=KEEP_TWO).close()

    assert (run_dir / "checkpoint_1.pt").exists()
    assert [] == tracker.session.checkpoints_removing


def test_a_checkpoint_that_the_caller_does_not_keep_is_removed_once_a_newer_one_is_intact(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path, read_json: Callable[..., Any]
) -> None:
    tracker = open_tracker()
    train(tracker, 1, 2, 3)

    assert tracker.remove_checkpoint(run_dir / "checkpoint_2.pt")
    assert {"checkpoint_1.pt", "checkpoint_3.pt"} == files_in(run_dir)
    assert ["1", "3"] == list(read_json(tracker.checkpoint_manifest)["checkpoints"])
    assert [["checkpoint_2.pt"]] == removals(run_dir)


def test_the_newest_checkpoint_and_those_without_a_newer_intact_one_always_stay(
    open_tracker: Callable[..., Any], train: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker()
    train(tracker, 1, 2)
    was_newest_removed = tracker.remove_checkpoint(run_dir / "checkpoint_2.pt")
    (run_dir / "checkpoint_2.pt").write_bytes(b"torn")
    was_last_whole_removed = tracker.remove_checkpoint(run_dir / "checkpoint_1.pt")

    assert not was_newest_removed
    assert not was_last_whole_removed
    assert not tracker.remove_checkpoint(run_dir / "unknown.pt")
    assert {"checkpoint_1.pt", "checkpoint_2.pt"} == files_in(run_dir)
    assert [] == removals(run_dir)
