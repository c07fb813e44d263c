from __future__ import annotations

import errno
from pathlib import Path

import pytest

from crashproof.disk.atomic import remove_partials
from crashproof.disk.trial_write import errors_of_folder, remove_trial, trial_path, try_to_write, write_trial
from crashproof.errors import DiskFull, QuotaExceeded, StorageUnwritable
from crashproof.testing import FaultyDisk

ERRORS = {
    "full": (errno.ENOSPC, DiskFull),
    "quota": (errno.EDQUOT, QuotaExceeded),
    "read-only": (errno.EROFS, StorageUnwritable),
    "no permission": (errno.EACCES, StorageUnwritable),
    "broken": (errno.EIO, StorageUnwritable),
    "stale handle": (errno.ESTALE, StorageUnwritable),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_folder_that_can_be_written_is_left_as_it_was(folder: Path) -> None:
    try_to_write(folder, "a")

    assert [] == list(folder.iterdir())


def test_the_file_lies_there_for_others_until_it_is_removed(folder: Path) -> None:
    write_trial(folder, "a", "a word")
    seen = trial_path(folder, "a").read_text()
    remove_trial(folder, "a")
    remove_trial(folder, "a")

    assert ("a word", []) == (seen, list(folder.iterdir()))


@pytest.mark.parametrize("error, kind", ERRORS.values(), ids=ERRORS)
def test_whichever_operation_fails_the_error_names_the_folder(
    folder: Path, tmp_path: Path, error: int, kind: type[Exception]
) -> None:
    counting = FaultyDisk(folder, tmp_path / "counted")
    try_to_write(folder, "a", disk=counting)

    for number in range(counting.num_operations):
        disk = FaultyDisk(folder, tmp_path / f"scratch_{number}", fails_at=number, error=error)
        with pytest.raises(kind) as refusal:
            try_to_write(folder, "a", disk=disk)
        assert f"{folder} " in str(refusal.value)
        # Only where removing is what fails does something stay, for the next start to sweep.
        assert len(list(folder.iterdir())) == (number == counting.num_operations - 1)
        remove_partials(folder)
        assert [] == list(folder.iterdir())

    assert 6 == counting.num_operations


def test_what_a_kill_leaves_is_swept_by_the_next_start(folder: Path) -> None:
    write_trial(folder, "a", "a word")

    remove_partials(folder)

    assert [] == list(folder.iterdir())


def test_an_error_of_the_system_without_a_number_is_told_too(folder: Path) -> None:
    with pytest.raises(StorageUnwritable, match="cannot be written: as it says"), errors_of_folder(folder):
        raise OSError("as it says")
