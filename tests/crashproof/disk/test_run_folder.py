from __future__ import annotations

from pathlib import Path

import pytest

from crashproof.disk.run_folder import RunFolder
from crashproof.errors import StorageUnwritable


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.under(tmp_path / "run")
    folder.progress.mkdir(parents=True)
    return folder


def test_a_path_inside_the_run_is_kept_relative_and_one_outside_absolute(folder: RunFolder, tmp_path: Path) -> None:
    assert "checkpoint_5.pt" == folder.recorded_path(folder.root / "checkpoint_5.pt")
    assert str(tmp_path / "elsewhere.pt") == folder.recorded_path(tmp_path / "elsewhere.pt")
    assert tmp_path / "elsewhere.pt" == folder.find(str(tmp_path / "elsewhere.pt"))


def test_a_path_through_a_link_is_still_inside(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.root)

    assert "checkpoint_5.pt" == folder.recorded_path(tmp_path / "link" / "checkpoint_5.pt")


def test_a_moved_run_finds_its_checkpoints(folder: RunFolder, tmp_path: Path) -> None:
    (folder.root / "checkpoint_5.pt").write_text("weights")
    recorded = folder.recorded_path(folder.root / "checkpoint_5.pt")
    folder.root.rename(tmp_path / "moved")

    assert "weights" == RunFolder.under(tmp_path / "moved").find(recorded).read_text()


def test_a_renamed_progress_folder_finds_what_lies_in_it(folder: RunFolder) -> None:
    (folder.progress / "checkpoint_5.pt").write_text("weights")
    recorded = folder.recorded_path(folder.progress / "checkpoint_5.pt")
    renamed = folder.progress.rename(folder.root / "renamed")

    assert "weights" == RunFolder(renamed).find(recorded).read_text()


def test_an_archived_session_finds_the_checkpoints_that_moved_with_it(folder: RunFolder) -> None:
    archive = folder.archive_of("session")
    (archive / "checkpoints").mkdir(parents=True)
    (archive / "checkpoints" / "checkpoint_5.pt").write_text("weights")

    assert "weights" == RunFolder(archive).find("checkpoint_5.pt").read_text()


def test_a_missing_path_resolves_into_the_run_folder(folder: RunFolder) -> None:
    assert folder.root / "checkpoint_9.pt" == folder.find("checkpoint_9.pt")
    assert folder.root == folder.find(".")


def test_nothing_in_quarantine_is_overwritten(folder: RunFolder) -> None:
    folder.quarantine.mkdir()
    (folder.quarantine / "checkpoint_5.pt").write_text("earlier")
    (folder.quarantine / "checkpoint_5.pt.1").write_text("earlier")

    assert "checkpoint_5.pt.2" == folder.free_name(folder.quarantine / "checkpoint_5.pt").name


def test_a_folder_holds_a_run_once_a_session_has_begun(folder: RunFolder) -> None:
    assert not folder.holds_a_run
    folder.events.write_text("")

    assert folder.holds_a_run
    assert folder.is_inside(folder.root / "checkpoint_5.pt")


@pytest.mark.parametrize(
    "recorded",
    [
        *("..", "../other", ".", "", "/etc/hosts", "a/../..", "progress", "progress/", "./progress/events.jsonl"),
        *(
            "progress/metrics.jsonl",
            "progress/set_aside",
            "progress/set_aside/checkpoint_1.pt",
            "progress/writer.lock",
        ),
        *("progress/archive/other/events.jsonl", "linked/checkpoint_1.pt", "linked/../../x", "again/events.jsonl"),
    ],
)
def test_what_is_elsewhere_or_the_run_s_own_is_never_moved(folder: RunFolder, tmp_path: Path, recorded: str) -> None:
    (tmp_path / "theirs").mkdir()
    (folder.root / "linked").symlink_to(tmp_path / "theirs")
    (folder.root / "again").symlink_to(folder.progress)

    assert not folder.may_move(folder.root / recorded)


@pytest.mark.parametrize("recorded", ["checkpoint_1.pt", "ckpts/checkpoint_1", "progress/checkpoint_1.pt", "a/../b"])
def test_what_lies_in_the_run_may_be_moved(folder: RunFolder, recorded: str) -> None:
    assert folder.may_move(folder.root / recorded)


def test_a_run_behind_a_link_may_move_its_own(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.root)

    assert RunFolder.under(tmp_path / "link").may_move(tmp_path / "link" / "checkpoint_1.pt")


@pytest.mark.parametrize(
    "name", ["../../x", "/etc", "a/b", ".", "..", ".hidden", "", "  ", "a\0b", "x" * 300, "half a \ud800 character"]
)
def test_a_session_s_archive_lies_in_the_archive_whatever_the_session_calls_itself(
    folder: RunFolder, name: str
) -> None:
    archived = folder.archive_of(name)

    assert folder.archive == archived.parent
    assert archived == folder.archive_of(archived.name)
    assert archived != folder.archive_of(name + "x")


def test_nothing_is_moved_through_a_link(folder: RunFolder, tmp_path: Path) -> None:
    folder.quarantine.symlink_to(tmp_path)

    with pytest.raises(StorageUnwritable, match="set_aside cannot be written: it is a link"):
        folder.require_no_link(folder.quarantine / "x")
    folder.require_no_link(folder.archive / "session")
    folder.require_no_link(tmp_path)


def test_a_folder_behind_a_link_is_told_from_one_that_is_not(folder: RunFolder, tmp_path: Path) -> None:
    (folder.root / "linked").symlink_to(tmp_path)

    assert folder.is_behind_link(folder.root / "linked" / "run")
    assert not folder.is_behind_link(folder.root / "ckpts")
