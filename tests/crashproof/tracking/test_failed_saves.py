"""A save that fails is an event: the status, the alerts and the settings of a run know of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import RunReader, TrackerSettings, training_progress_context
from crashproof.alerts.settings import AlertSettings
from crashproof.disk.files import Disk
from crashproof.errors import DiskFull, InvalidMetric, RunClosed, SavesFailed
from crashproof.records.events import AlertCleared, AlertRaised, CheckpointFailed
from crashproof.testing import FaultyDisk

FULL = OSError(errno.ENOSPC, "No space left on device")


def settings(**given: Any) -> TrackerSettings:
    return TrackerSettings(has_heartbeat=False, alerts=AlertSettings(disk_low_bytes=0), **given)


def failures(run_dir: Path) -> list[tuple[int, str]]:
    return [
        (each.step, each.error) for each in RunReader.open(run_dir).events() if isinstance(each, CheckpointFailed)
    ]


def alerts(run_dir: Path) -> list[str]:
    return [
        f"-{each.kind}" if isinstance(each, AlertCleared) else f"{each.kind}: {each.message}"
        for each in RunReader.open(run_dir).events()
        if isinstance(each, AlertRaised | AlertCleared)
    ]


def test_a_loop_that_goes_on_without_a_save_says_so(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    save_checkpoint: Callable[..., Path],
    run_dir: Path,
) -> None:
    tracker = open_tracker(settings=settings())
    update(tracker, 10)
    save_checkpoint(tracker, 10)
    for step in (20, 30, 40):
        update(tracker, step)
        tracker.record_checkpoint_failure(step, FULL)
    failed = tracker.get_progress_summary()["failed_saves"]
    update(tracker, 50)
    save_checkpoint(tracker, 50)
    tracker.save()

    reason = "OSError: [Errno 28] No space left on device"
    assert (3, 3, 40, reason) == (failed["in_a_row"], failed["total"], failed["step"], failed["error"])
    assert [(20, reason), (30, reason), (40, reason)] == failures(run_dir)
    assert [
        f"saves_failing: 2 saves in a row have failed, the newest at step 30: {reason}; the newest checkpoint is 20 "
        "steps old",
        "-saves_failing",
    ] == alerts(run_dir)
    known = RunReader.open(run_dir).session().failed_saves
    assert (0, 3, None) == (known.in_a_row, known.total, known.error)
    assert tracker.session == RunReader.open(run_dir).session()
    assert [] == RunReader.open(run_dir).problems()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_checkpoint_that_cannot_be_recorded_counts_by_itself_and_once(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    run_dir: Path,
    tmp_path: Path,
    error: int,
) -> None:
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    tracker = open_tracker(settings=settings(), disk=disk)
    update(tracker, 5)
    (run_dir / "checkpoint_5.pt").write_bytes(b"weights")
    disk.begin_failing(error)
    with pytest.raises(Exception) as refusal:
        tracker.record_checkpoint(5, run_dir / "checkpoint_5.pt", 0)
    # A loop may report as well what `record_checkpoint` has raised.
    tracker.record_checkpoint_failure(5, refusal.value)
    waiting = tracker.get_progress_summary()["lines_waiting"]
    disk.stop_failing()
    tracker.record_checkpoint(5, run_dir / "checkpoint_5.pt", 0)

    assert 1 == waiting
    assert [5] == [step for step, _ in failures(run_dir)]
    assert (0, 1) == (tracker.session.failed_saves.in_a_row, tracker.session.failed_saves.total)
    assert 5 == tracker.get_recovery_checkpoint().checkpoint_step


def test_a_number_of_failures_that_is_set_ends_the_training(
    open_tracker: Callable[..., Any], update: Callable[..., None], save_checkpoint: Callable[..., Path]
) -> None:
    tracker = open_tracker(settings=settings(max_failed_saves=2))
    update(tracker, 10)
    save_checkpoint(tracker, 10)
    for step in (20, 30):
        update(tracker, step)
        tracker.record_checkpoint_failure(step, FULL)
    update(tracker, 40)

    with pytest.raises(SavesFailed) as stopped:
        tracker.record_checkpoint_failure(40, DiskFull(Path("run/checkpoint_40.pt")))

    assert (
        "Step 40 could not be saved: The disk is full: run/checkpoint_40.pt could not be written. 3 saves in a row "
        "have failed. The newest checkpoint is that of step 10, so 30 steps are lost." == stopped.value.message
    )
    assert stopped.value.hint.startswith("Free space there")
    assert stopped.value.hint.endswith("Then start the same command again: it resumes at step 10.")


def test_without_any_checkpoint_it_says_so(open_tracker: Callable[..., Any], update: Callable[..., None]) -> None:
    tracker = open_tracker(settings=settings(max_failed_saves=0))
    update(tracker, 40)

    with pytest.raises(SavesFailed, match=r"There is no checkpoint yet, so all 40 steps are lost.*begins at step 0"):
        tracker.record_checkpoint_failure(40, "no quota")


def test_failures_before_a_success_or_a_restart_do_not_count_towards_the_end(
    open_tracker: Callable[..., Any], update: Callable[..., None], save_checkpoint: Callable[..., Path]
) -> None:
    for _ in range(2):
        tracker = open_tracker(settings=settings(max_failed_saves=1))
        update(tracker, 10)
        tracker.record_checkpoint_failure(10, FULL)
    assert 2 == tracker.session.failed_saves.in_a_row
    save_checkpoint(tracker, 15)
    tracker.record_checkpoint_failure(20, FULL)

    with pytest.raises(SavesFailed):
        tracker.record_checkpoint_failure(30, FULL)


def test_a_checkpoint_that_cannot_be_recorded_ends_the_training_too_where_that_is_set(
    open_tracker: Callable[..., Any], run_dir: Path, tmp_path: Path
) -> None:
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    tracker = open_tracker(settings=settings(max_failed_saves=0), disk=disk)
    (run_dir / "checkpoint_5.pt").write_bytes(b"weights")
    disk.begin_failing(errno.ENOSPC)

    with pytest.raises(SavesFailed, match="The disk is full"):
        tracker.record_checkpoint(5, run_dir / "checkpoint_5.pt", 0)
    disk.stop_failing()


def test_secrets_and_half_characters_of_an_error_are_not_kept(
    open_tracker: Callable[..., Any], run_dir: Path
) -> None:
    tracker = open_tracker(settings=settings())
    tracker.record_checkpoint_failure(5, "PUT https://me:hunter2secret@host/run \udcff failed")

    ((step, error),) = failures(run_dir)
    assert (5, False, True) == (step, "hunter2secret" in error, "\\udcff" in error)


def test_a_step_that_is_none_is_refused_and_a_closed_run_takes_none(open_tracker: Callable[..., Any]) -> None:
    tracker = open_tracker(settings=settings())
    with pytest.raises(InvalidMetric):
        tracker.record_checkpoint_failure(-1, FULL)
    tracker.close()

    with pytest.raises(RunClosed):
        tracker.record_checkpoint_failure(1, FULL)


def test_a_context_passes_it_on_and_off_the_main_process_does_nothing(run_dir: Path) -> None:
    with training_progress_context({}, run_dir, 10, settings=settings()) as progress:
        progress.record_checkpoint_failure(4, "no space")
    with training_progress_context({}, run_dir, 10, is_main_process=False) as other:
        other.record_checkpoint_failure(5, "no space")

    assert [(4, "no space")] == failures(run_dir)


class RefusesDigests(Disk):
    """Refuses to write the event that records a digest."""

    error: int | None = None

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        if self.error is not None and b'"checkpoint_hashed"' in bytes(content):
            raise OSError(self.error, "refused")
        return super().write(file, content)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_digest_that_cannot_be_recorded_yet_is_recorded_later(
    open_tracker: Callable[..., Any], save_checkpoint: Callable[..., Path], run_dir: Path, error: int
) -> None:
    disk = RefusesDigests()
    tracker = open_tracker(settings=settings(large_checkpoint_bytes=1), disk=disk)
    disk.error = error
    for step in (1, 2):
        save_checkpoint(tracker, step)
    tracker._checkpoints._digests.wait()
    with pytest.raises((DiskFull, OSError)):
        tracker.get_recovery_checkpoint()
    disk.error = None

    assert 2 == tracker.get_recovery_checkpoint().checkpoint_step
    recorded = RunReader.open(run_dir).session().checkpoints
    assert [True, True] == [recorded[step].digest is not None for step in (1, 2)]


def test_an_end_with_a_digest_that_cannot_be_recorded_is_no_crash(
    open_tracker: Callable[..., Any], save_checkpoint: Callable[..., Path], run_dir: Path
) -> None:
    disk = RefusesDigests()
    tracker = open_tracker(settings=settings(large_checkpoint_bytes=1), disk=disk)
    disk.error = errno.ENOSPC
    save_checkpoint(tracker, 1)
    tracker.close()

    assert "completed" == RunReader.open(run_dir).session().attempts[-1].how
