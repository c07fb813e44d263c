from __future__ import annotations

import errno
import math

import msgspec
import pytest

from crashproof.disk.run_folder import RunFolder
from crashproof.reading.run_state import read_snapshot
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import JournalMark, Manifest, ProgressFile, SessionFile
from crashproof.testing import FaultyDisk
from crashproof.tracking.snapshots import SnapshotWriter, session_bytes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run" / "progress").mkdir(parents=True)
    return RunFolder.under(tmp_path / "run")


def session() -> TrainingSession:
    return TrainingSession(
        session_id="training_1", start_time=1.0, config={"a": 1}, config_hash="c", total_steps_target=10
    )


def test_the_summary_keeps_its_names_beside_version_and_time(folder, read_json):
    SnapshotWriter(folder).write_summary({"progress_pct": 50.0}, ProgressFile(saved_at=7.0))

    said = read_json(folder.summary)
    beside = {"v": 1, "saved_at": 7.0, "last_seen": None, "journals": None}
    assert beside | {"progress_pct": 50.0} == {k: v for k, v in said.items() if k != "crc"}


def test_numbers_that_json_cannot_hold_are_named_in_the_summary(folder, read_json):
    SnapshotWriter(folder).write_summary({"loss_trend": {"current_loss": math.nan}}, ProgressFile(saved_at=7.0))

    said = read_json(folder.summary)
    assert ({"current_loss": None}, {"loss_trend.current_loss": "NaN"}) == (said["loss_trend"], said["nonfinite"])


def test_the_manifest_is_read_back_as_it_was(folder):
    SnapshotWriter(folder).write_manifest(session(), now=7.0)

    assert Manifest(
        session_id="training_1", checkpoints={}, last_checkpoint_step=None, saved_at=7.0
    ) == read_snapshot(folder.manifest, msgspec.json.Decoder(Manifest))


def test_the_session_is_read_back_with_its_marks(folder):
    marks = {"metrics.jsonl": JournalMark(num_bytes=10, num_lines=1, last_line_crc="0a0b0c0d")}
    SnapshotWriter(folder).write_session(session_bytes(session(), marks, now=7.0))

    found = read_snapshot(folder.session, msgspec.json.Decoder(SessionFile))
    assert (marks, 7.0, "training_1") == (found.journals, found.saved_at, found.session_id)


def test_a_full_disk_leaves_the_old_snapshot_and_is_logged_once(folder, tmp_path, caplog):
    SnapshotWriter(folder).write_summary({"progress_pct": 50.0}, ProgressFile(saved_at=7.0))
    before = folder.summary.read_bytes()
    disk = FaultyDisk(folder.root, tmp_path / "scratch", fails_at=0, error=errno.ENOSPC, lasts=True)
    writer = SnapshotWriter(folder, disk=disk)
    for _ in range(3):
        writer.write_summary({"progress_pct": 60.0}, ProgressFile(saved_at=8.0))

    assert before == folder.summary.read_bytes()
    assert 1 == len(caplog.messages)
    assert "progress.json could not be replaced, and the old one stays: The disk is full" in caplog.messages[0]


def test_a_snapshot_is_written_once_there_is_space_again(folder, tmp_path, caplog):
    disk = FaultyDisk(folder.root, tmp_path / "scratch", fails_at=0, error=errno.ENOSPC)
    writer = SnapshotWriter(folder, disk=disk)
    were_written = []
    for _ in range(2):
        writer.write_summary({}, ProgressFile(saved_at=8.0))
        were_written.append(folder.summary.exists())

    assert [False, True] == were_written
    assert 1 == len(caplog.messages)
