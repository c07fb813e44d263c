"""A disk that refuses for a while what a run records: it is told while it lasts, and nothing is lost."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import KeepLatest, RunReader, TrackerSettings
from crashproof.alerts.settings import AlertSettings
from crashproof.disk.files import Disk
from crashproof.records.events import AlertCleared, AlertRaised
from crashproof.testing import FakeClock, FaultyDisk

SETTINGS = TrackerSettings(has_heartbeat=False, session_interval_seconds=0.0, alerts=AlertSettings(disk_low_bytes=0))


class Refusing(Disk):
    """Refuses some operations, each with an error, for as long as it is told to."""

    def __init__(self) -> None:
        self.refused: dict[str, int] = {}

    def _refuse(self, operation: str) -> None:
        if operation in self.refused:
            raise OSError(self.refused[operation], os.strerror(self.refused[operation]))

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        self._refuse("write")
        return super().write(file, content)

    def sync(self, file: int) -> None:
        self._refuse("sync")
        super().sync(file)

    def open_anew(self, path: Path) -> int:
        self._refuse("new file")
        return super().open_anew(path)

    def link(self, source: Path, target: Path) -> None:
        self._refuse("link")
        super().link(source, target)

    def remove_file(self, path: Path) -> None:
        self._refuse(f"removal in {path.parent.name}")
        super().remove_file(path)


def told(run_dir: Path) -> list[str]:
    return [
        f"-{each.kind}" if isinstance(each, AlertCleared) else f"{each.kind}: {each.message}"
        for each in RunReader.open(run_dir).events()
        if isinstance(each, AlertRaised | AlertCleared)
    ]


@pytest.mark.parametrize(
    "refused, words",
    [
        pytest.param({"write": errno.EDQUOT}, "records wait in memory: The disk quota is used up", id="quota"),
        pytest.param({"write": errno.EROFS}, "records wait in memory: ", id="read-only"),
        pytest.param({"write": errno.EIO}, "records wait in memory: [Errno 5] Input/output error", id="broken"),
        pytest.param(
            {"sync": errno.EIO}, "a power loss would lose the newest records, which cannot be synced: ", id="no-sync"
        ),
        pytest.param(
            {"new file": errno.EACCES},
            "snapshots that cannot be replaced (progress.json, session.json) are out of date: ",
            id="no-snapshots",
        ),
    ],
)
def test_what_cannot_be_written_for_a_while_is_an_alert_and_no_flood(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    run_dir: Path,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    refused: dict[str, int],
    words: str,
) -> None:
    disk = Refusing()
    tracker = open_tracker(settings=SETTINGS, disk=disk)
    update(tracker, 1)
    tracker._upkeep.beat()
    caplog.clear()
    disk.refused = refused
    for step in range(2, 32):
        update(tracker, step)
        tracker._upkeep.beat()
        clock.advance(1.0)
    active = list(tracker.session.alerts_active)
    said = [each for each in caplog.messages if not each.startswith("Alert ")]
    disk.refused = {}
    tracker._upkeep.beat()
    tracker.close()

    assert ["records_failing"] == active
    raised, cleared = told(run_dir)
    assert words in raised
    assert "-records_failing" == cleared
    assert 1 <= len(said) <= 3, said
    reader = RunReader.open(run_dir)
    assert list(range(1, 32)) == [line.step for line in reader.history()]
    assert [] == reader.problems()
    assert reader.session() == tracker.session


def test_a_trouble_of_seconds_is_no_alert(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path, clock: FakeClock
) -> None:
    disk = Refusing()
    tracker = open_tracker(settings=SETTINGS, disk=disk)
    for step in range(1, 60):
        # Half of the time, but never long.
        disk.refused = {"write": errno.EIO} if step % 10 < 5 else {}
        update(tracker, step)
        tracker._upkeep.beat()
        clock.advance(1.0)
    disk.refused = {}
    tracker.close()

    assert [] == told(run_dir)


def test_alerts_are_checked_although_altered_journals_cannot_be_written_again(
    open_tracker: Callable[..., Any], update: Callable[..., None], run_dir: Path, clock: FakeClock
) -> None:
    disk = Refusing()
    tracker = open_tracker(settings=SETTINGS, disk=disk)
    update(tracker, 1)
    disk.refused = dict.fromkeys(("write", "new file"), errno.EROFS)
    tracker.metrics_file.unlink()
    for _ in range(20):
        tracker._upkeep.beat()
        clock.advance(1.0)
    active = list(tracker.session.alerts_active)
    disk.refused = {}
    tracker._upkeep.beat()
    tracker.close()

    assert ["records_failing"] == active
    assert [1] == [line.step for line in RunReader.open(run_dir).history()]


@pytest.mark.parametrize("refused", ["new file", "removal in previous"])
def test_a_checkpoint_without_its_copy_is_recorded_and_the_trouble_is_told_once(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    save_checkpoint: Callable[..., Path],
    run_dir: Path,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    refused: str,
) -> None:
    disk = Refusing()
    tracker = open_tracker(settings=SETTINGS, disk=disk)
    for step in range(1, 9):
        if step == 2:
            caplog.clear()
            disk.refused = {refused: errno.EROFS}
        update(tracker, step)
        save_checkpoint(tracker, step, b"weights of %d" % step, path=run_dir / "last.pt")
        clock.advance(4.0)
        tracker._upkeep.beat()
    kept = ("No copy of last.pt is kept", "Earlier bytes of checkpoints cannot be removed")
    said = [each for each in caplog.messages if each.startswith(kept)]
    disk.refused = {}
    save_checkpoint(tracker, 9, path=run_dir / "last.pt")
    tracker._upkeep.beat()
    tracker.close()

    assert 1 == len(said), said
    assert ["records_failing", "-records_failing"] == [each.split(":")[0] for each in told(run_dir)]
    assert 9 == open_tracker().get_recovery_checkpoint().checkpoint_step


def test_old_checkpoints_that_cannot_be_deleted_are_told_once_and_go_later(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    save_checkpoint: Callable[..., Path],
    run_dir: Path,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Refusing()
    disk.refused = {"removal in run": errno.EROFS}
    tracker = open_tracker(settings=dataclasses.replace(SETTINGS, keep=KeepLatest(1)), disk=disk)
    for step in range(1, 21):
        update(tracker, step)
        save_checkpoint(tracker, step)
        clock.advance(1.0)
        tracker._upkeep.beat()
    said = [each for each in caplog.messages if each.startswith("Checkpoints that are no longer kept")]
    disk.refused = {}
    update(tracker, 21)
    save_checkpoint(tracker, 21)
    tracker._upkeep.beat()
    tracker.close()

    assert 1 == len(said)
    assert ["records_failing", "-records_failing"] == [each.split(":")[0] for each in told(run_dir)]
    assert {"checkpoint_21.pt", "progress"} == {each.name for each in run_dir.iterdir()}


@pytest.mark.parametrize("error", [errno.EROFS, errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_disk_that_refuses_everything_for_a_while_ends_no_training(
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    run_dir: Path,
    tmp_path: Path,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    error: int,
) -> None:
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    tracker = open_tracker(total_steps=200, settings=SETTINGS, disk=disk)
    with caplog.at_level(logging.WARNING, logger="crashproof"):
        for step in range(1, 101):
            if step == 20:
                disk.begin_failing(error)
            if step == 80:
                disk.stop_failing()
            update(tracker, step)
            tracker._upkeep.beat()
            clock.advance(1.0)
    tracker.close()

    reader = RunReader.open(run_dir)
    assert list(range(1, 101)) == [line.step for line in reader.history()]
    assert [] == reader.problems()
    assert ["records_failing", "-records_failing"] == [each.split(":")[0] for each in told(run_dir)]
    # One word for each kind of record or file, at its beginning and end.
    assert len(caplog.messages) < 15, caplog.messages
