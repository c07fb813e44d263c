from __future__ import annotations

import errno

import pytest

from crashproof import RunReader, TrackerSettings
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import DiskFull
from crashproof.records.events import ConnectionFailed, Paused
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.states import SessionKind
from crashproof.rules.identity import IdentityRules
from crashproof.testing import FaultyDisk
from crashproof.tracking.open_run import open_run
from crashproof.tracking.requested_session import RequestedSession
from crashproof.tracking.run_writer import RunWriter


class FillingDisk(FaultyDisk):
    """A disk that has no space while `is_full`."""

    is_full = False

    def write(self, file, content):
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(file, content)


@pytest.fixture
def disk(run_dir, tmp_path):
    run_dir.mkdir()
    return FillingDisk(run_dir, tmp_path / "scratch")


@pytest.fixture
def writer(run_dir, clock, disk):
    requested = RequestedSession(
        session_id="training_1",
        config={},
        kind=SessionKind.TRAINING,
        config_hash="c",
        total_steps=100,
        on_config_change="archive",
        rules=IdentityRules.of(()),
        is_fresh=False,
    )
    run = open_run(RunFolder.under(run_dir), requested, clock=clock, disk=disk)
    settings = TrackerSettings(session_interval_lines=10, session_interval_seconds=15.0)
    yield RunWriter(run, settings=settings, clock=clock, disk=disk)
    run.close()


def line(step: int) -> MetricsSnapshot:
    return MetricsSnapshot(
        step=step,
        timestamp=0.0,
        wall_clock_hours=0.0,
        loss=1.0,
        loss_components={},
        learning_rate=0.1,
        samples_processed=step,
        tokens_processed=step,
    )


def failed(writer: RunWriter) -> ConnectionFailed:
    return ConnectionFailed(**writer.stamp(), retry_count=1, error="refused")


def test_what_is_kept_is_in_the_journal_and_in_the_session(writer, run_dir):
    writer.keep_update(line(1))
    writer.keep(failed(writer))

    read = RunReader.open(run_dir)
    assert (1, 1) == (writer.session.steps_completed, writer.session.connection_failures)
    assert [1] == [each.step for each in read.history()]
    assert ConnectionFailed is type(list(read.events())[-1])


def test_an_event_is_stamped_with_when_and_by_whom(writer, clock):
    clock.advance(5.0)

    assert {"timestamp": clock.now(), "attempt": 1} == writer.stamp()


def test_a_durable_event_survives_a_power_loss_with_the_metrics_before_it(writer, disk, tmp_path):
    writer.keep_update(line(1))
    writer.keep_durably(Paused(**writer.stamp(), seconds=1.0))
    disk.after_power_loss(tmp_path / "left", "strict")

    left = RunReader.open(tmp_path / "left").session()
    assert (1, 1.0) == (left.steps_completed, left.total_pause_duration)


def test_while_the_disk_is_full_updates_wait_and_are_written_in_order_later(writer, disk, run_dir):
    writer.keep_update(line(1))
    disk.is_full = True
    for step in (2, 3):
        writer.keep_update(line(step))
    writer.write_queued()
    num_queued = writer.num_queued
    with pytest.raises(DiskFull):
        writer.raise_if_queued()
    disk.is_full = False
    writer.write_queued()
    writer.raise_if_queued()

    assert (2, 0) == (num_queued, writer.num_queued)
    assert [1, 2, 3] == [each.step for each in RunReader.open(run_dir).history()]
    assert [] == RunReader.open(run_dir).problems()


def test_a_durable_event_is_refused_by_a_full_disk_and_not_taken_in(writer, disk):
    disk.is_full = True
    with pytest.raises(DiskFull):
        writer.keep_durably(Paused(**writer.stamp(), seconds=1.0))

    assert 0.0 == writer.session.total_pause_duration


def test_the_session_file_never_knows_more_than_the_journals(writer, disk, run_dir):
    writer.write_session(writer.session_content())
    before = (run_dir / "progress" / "session.json").read_bytes()
    disk.is_full = True
    writer.keep_update(line(1))
    disk.is_full = False
    writer.write_session(writer.session_content())

    assert before == (run_dir / "progress" / "session.json").read_bytes()


def test_the_session_file_is_due_after_so_many_lines(writer):
    writer.write_session(writer.session_content())
    due = []
    for step in range(1, 11):
        writer.keep_update(line(step))
        due.append(writer.is_session_file_due)

    assert [False] * 9 + [True] == due


def test_the_session_file_is_due_after_so_many_seconds(writer, clock):
    writer.write_session(writer.session_content())
    before = writer.is_session_file_due
    clock.advance(15.0)

    assert (False, True) == (before, writer.is_session_file_due)


def test_a_session_as_of_now_is_not_changed_by_what_comes_later(writer):
    writer.keep_update(line(1))
    now = writer.session_as_of_now()
    before = repr(now)
    writer.keep_update(line(2))
    writer.keep(Paused(**writer.stamp(), seconds=1.0))

    assert before == repr(now)
    assert 2 == writer.session.steps_completed


def test_the_summary_counts_what_waits(writer, disk):
    disk.is_full = True
    writer.keep_update(line(1))
    summary = writer.summary(writer.session_as_of_now(), wall_clock_hours=0.0, num_pending=3)

    assert 4 == summary.lines_waiting
