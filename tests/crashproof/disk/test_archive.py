from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from crashproof.disk.archive import archive_session, interrupted_archiving
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import StorageUnwritable
from crashproof.testing import FaultyDisk, PowerLost


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.under(tmp_path / "run")
    folder.progress.mkdir(parents=True)
    for path in (folder.metrics, folder.events, folder.session, folder.answers):
        path.write_text(path.name)
    (folder.root / "checkpoint_5.pt").write_text("weights")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_session_moves_with_its_checkpoints_and_leaves_the_answers(folder: RunFolder, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.pt"
    outside.write_text("not the run's own")

    archive = archive_session(folder, "session", [folder.root / "checkpoint_5.pt", outside], disk=REAL_DISK)

    assert ["checkpoints/checkpoint_5.pt", "events.jsonl", "metrics.jsonl", "session.json"] == names(archive)
    assert folder.archive_of("session") == archive
    assert folder.answers.exists()
    assert outside.exists()
    assert None is interrupted_archiving(folder)


def test_an_archive_of_the_same_name_is_kept(folder: RunFolder) -> None:
    folder.archive_of("session").mkdir(parents=True)
    (folder.archive_of("session") / "earlier").write_text("kept")

    archive = archive_session(folder, "session", [], disk=REAL_DISK)

    assert "session.1" == archive.name
    assert "kept" == (folder.archive_of("session") / "earlier").read_text()


class FailingDisk(Disk):
    """One on which a checkpoint cannot be moved."""

    def __init__(self, error: int) -> None:
        self._error = error

    def replace(self, source: Path, target: Path) -> None:
        if source.name == "checkpoint_5.pt":
            raise OSError(self._error, os.strerror(self._error))
        super().replace(source, target)


def test_a_checkpoint_on_a_mount_inside_the_run_stays_and_the_session_is_archived(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = folder.root / "checkpoint_5.pt"

    archive = archive_session(folder, "session", [checkpoint], disk=FailingDisk(errno.EXDEV))

    assert ["events.jsonl", "metrics.jsonl", "session.json"] == names(archive)
    assert "weights" == checkpoint.read_text()
    assert "is on another file system" in caplog.text


def test_a_checkpoint_that_cannot_be_moved_for_another_reason_stops_the_archiving(folder: RunFolder) -> None:
    with pytest.raises(StorageUnwritable):
        archive_session(folder, "session", [folder.root / "checkpoint_5.pt"], disk=FailingDisk(errno.EACCES))


def test_archiving_that_was_interrupted_anywhere_can_be_completed(tmp_path: Path) -> None:
    for number in range(200):
        folder = RunFolder.under(tmp_path / str(number) / "run")
        folder.progress.mkdir(parents=True)
        folder.metrics.write_text("metrics")
        folder.events.write_text("events")
        disk = FaultyDisk(folder.root, tmp_path / str(number) / "scratch", fails_at=number)
        try:
            archive_session(folder, "session", [], disk=disk)
        except PowerLost:
            interrupted = interrupted_archiving(folder)
            archive = (
                archive_session(folder, interrupted or "session", [], disk=REAL_DISK)
                if (interrupted or folder.events.exists())
                else folder.archive_of("session")
            )
            assert ["events.jsonl", "metrics.jsonl"] == names(archive)
            continue
        break

    assert 8 < number < 199


@pytest.mark.parametrize("name", ["../../../stolen", "/stolen", "..", "a/b"])
def test_a_session_id_from_somebody_else_moves_nothing_out_of_the_run(
    folder: RunFolder, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = {each for each in tmp_path.iterdir() if each.name != "run"}

    archive = archive_session(folder, name, [], disk=REAL_DISK)

    assert folder.archive == archive.parent
    assert ["events.jsonl", "metrics.jsonl", "session.json"] == names(archive)
    assert before == {each for each in tmp_path.iterdir() if each.name != "run"}
    assert "no name of a folder" in caplog.text


def test_what_a_record_calls_a_checkpoint_and_is_the_run_s_own_or_elsewhere_stays(
    folder: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "theirs").write_text("theirs")
    claimed = ["progress/api_recovery.jsonl", "../theirs", "progress", ".", "checkpoint_5.pt"]

    archive = archive_session(folder, "session", [folder.root / each for each in claimed], disk=REAL_DISK)

    assert "checkpoints/checkpoint_5.pt" in names(archive)
    assert folder.answers.exists()
    assert (tmp_path / "theirs").exists()


def test_an_archive_that_is_a_link_gets_nothing(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    folder.archive.symlink_to(tmp_path / "theirs")

    with pytest.raises(StorageUnwritable, match="it is a link"):
        archive_session(folder, "session", [], disk=REAL_DISK)

    assert folder.events.exists()
    assert [] == list((tmp_path / "theirs").iterdir())


def test_an_interrupted_archive_whose_name_is_no_session_is_left_alone(folder: RunFolder) -> None:
    (folder.archive / ".incoming-.").mkdir(parents=True)
    (folder.archive / ".incoming-real").mkdir()

    assert "real" == interrupted_archiving(folder)
