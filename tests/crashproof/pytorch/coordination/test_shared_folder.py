from __future__ import annotations

import errno
import fcntl
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rank_threads import ThreadRank, on_ranks

from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import DiskFull, FolderNotShared, QuotaExceeded, RunInUse, StorageUnwritable
from crashproof.pytorch.coordination.shared_folder import require_shared_folder
from crashproof.pytorch.ranks import SingleRank

HOST = socket.gethostname()
SHARE_IT = "Let all hosts share the file system of --output-dir."


class Refusing(Disk):
    """Refuses one operation on this rank's own trial file."""

    def __init__(self, operation: str, error: int) -> None:
        self._operation = operation
        self._error = error

    def _refuse(self, operation: str) -> None:
        if operation == self._operation:
            raise OSError(self._error, "refused")

    def open_anew(self, path: Path) -> int:
        self._refuse("create")
        return super().open_anew(path)

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        self._refuse("write")
        return super().write(file, content)

    def sync(self, file: int) -> None:
        self._refuse("sync")
        super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._refuse("rename")
        super().replace(source, target)

    def sync_folder(self, path: Path) -> None:
        self._refuse("sync of the folder")
        super().sync_folder(path)

    def remove_file(self, path: Path) -> None:
        self._refuse("remove")
        super().remove_file(path)


def on_folders(*folders: Path, disks: dict[int, Disk] | None = None, look_seconds: float = 0.2) -> list[Any]:
    """What becomes of ranks that call these places the output folder."""

    def act(rank: ThreadRank) -> None:
        disk = (disks or {}).get(rank.rank, REAL_DISK)
        require_shared_folder(folders[rank.rank], rank, disk=disk, look_seconds=look_seconds)

    return on_ranks(len(folders), act)


def test_a_folder_that_all_ranks_can_write_is_made_and_nothing_stays_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"

    assert [None] * 4 == on_folders(*[folder] * 4)
    assert [] == list(folder.iterdir())
    assert [None] * 4 == on_folders(*[folder] * 4)


def test_one_process_tries_the_folder_too(tmp_path: Path) -> None:
    require_shared_folder(tmp_path / "run", SingleRank())
    with pytest.raises(StorageUnwritable, match="run cannot be written: Read-only file system"):
        require_shared_folder(tmp_path / "run", SingleRank(), disk=Refusing("rename", errno.EROFS))

    assert [] == list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync of the folder", "remove"])
def test_a_rank_that_cannot_write_is_named_on_all(tmp_path: Path, operation: str, error: int) -> None:
    ends = on_folders(*[tmp_path] * 3, disks={1: Refusing(operation, error)})

    assert [FolderNotShared] * 3 == [type(each) for each in ends]
    assert 1 == len({str(each) for each in ends})
    said = str(ends[0])
    assert f"Rank 1 on {HOST}: {tmp_path} cannot be written: " in said
    assert "Rank 0 on" not in said
    assert "Every rank writes its part of each checkpoint." in said
    left = [each.name for each in tmp_path.iterdir()]
    assert [] == left or (operation == "remove" and 1 == len(left))


@pytest.mark.parametrize(
    "error, words", [(errno.ENOSPC, "The disk is full"), (errno.EDQUOT, "The disk quota is used up")]
)
def test_a_rank_without_space_or_quota_says_what_to_free(tmp_path: Path, error: int, words: str) -> None:
    ends = on_folders(*[tmp_path] * 2, disks={1: Refusing("write", error)})

    assert all(f"Rank 1 on {HOST}: {words}" in str(each) and "Free space" in each.hint for each in ends)


@pytest.mark.parametrize(
    "error, kind", [(errno.ENOSPC, DiskFull), (errno.EDQUOT, QuotaExceeded), (errno.EROFS, StorageUnwritable)]
)
def test_the_main_ranks_own_trouble_is_raised_on_all(tmp_path: Path, error: int, kind: type[Exception]) -> None:
    ends = on_folders(*[tmp_path] * 3, disks={0: Refusing("write", error)})

    assert [kind] * 3 == [type(each) for each in ends]
    assert all(str(each).startswith("Rank 0: ") for each in ends)


def test_a_rank_without_the_folder_gets_none_made(tmp_path: Path) -> None:
    ends = on_folders(tmp_path / "run", tmp_path / "elsewhere")

    assert [FolderNotShared] * 2 == [type(each) for each in ends]
    assert f"Rank 1 on {HOST} does not see the folder that rank 0 has made. {SHARE_IT}" in str(ends[1])
    assert not (tmp_path / "elsewhere").exists()
    assert [] == list((tmp_path / "run").iterdir())


def test_another_folder_of_the_same_name_is_told_from_the_shared_one(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()

    ends = on_folders(tmp_path / "run", tmp_path / "run", tmp_path / "local")

    assert [FolderNotShared] * 3 == [type(each) for each in ends]
    assert f"Rank 0 on {HOST} does not see what rank 2 has written there" in str(ends[0])
    assert f"Rank 2 on {HOST} does not see what rank 0 has written there" in str(ends[0])
    assert [[], []] == [list((tmp_path / name).iterdir()) for name in ("run", "local")]


class Overlay(Disk):
    """Reads the shared folder and writes into another, as a container's overlay over a mount does."""

    def __init__(self, upper: Path) -> None:
        self._upper = upper

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, self._upper / target.name)


def test_a_rank_whose_writes_go_elsewhere_is_found_though_it_sees_the_others(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()

    ends = on_folders(*[tmp_path / "run"] * 2, disks={1: Overlay(tmp_path / "upper")})

    assert all(f"Rank 0 on {HOST} does not see what rank 1 has written there" in str(each) for each in ends)


def test_a_file_system_that_shows_new_files_late_is_waited_for(tmp_path: Path) -> None:
    class Late(Disk):
        def replace(self, source: Path, target: Path) -> None:
            threading.Timer(0.3, super().replace, (source, target)).start()

    assert [None] * 2 == on_folders(*[tmp_path] * 2, disks={1: Late()}, look_seconds=20.0)


def test_of_many_ranks_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    refusing = {rank: Refusing("write", errno.EROFS) for rank in range(1, 8)}

    (said, *_) = on_folders(*[tmp_path] * 8, disks=refusing)

    named = [rank for rank in range(8) if f"Rank {rank} on" in str(said)]
    assert [1, 2, 3, 4] == named
    assert "So it is with 3 more." in str(said)


def test_space_that_a_killed_save_holds_is_freed_before_the_trial(
    open_tracker: Callable[..., Any], run_dir: Path, left_by_a_kill: Callable[[Path], Path]
) -> None:
    class FullOfPartials(Disk):
        def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
            if (left / ".checkpoint_7.crashproof-partial").exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(file, content)

    open_tracker()
    left = left_by_a_kill(run_dir)
    (left / ".checkpoint_7.crashproof-partial").mkdir()

    require_shared_folder(left, SingleRank(), disk=FullOfPartials())

    assert ["progress"] == [each.name for each in left.iterdir()]


def test_a_run_that_another_process_writes_is_named_on_all_ranks(
    open_tracker: Callable[..., Any], run_dir: Path, left_by_a_kill: Callable[[Path], Path]
) -> None:
    open_tracker()
    left = left_by_a_kill(run_dir)
    partial = left / ".checkpoint_7.crashproof-partial"
    partial.mkdir()
    with RunFolder.under(left).lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ends = on_folders(left, left)

    assert [RunInUse] * 2 == [type(each) for each in ends]
    assert partial.exists()


def test_a_rank_that_sees_nothing_ends_the_wait_of_all_within_the_time_to_look(tmp_path: Path) -> None:
    began = time.monotonic()

    ends = on_folders(tmp_path / "run", tmp_path / "elsewhere", look_seconds=1.0)

    assert [FolderNotShared] * 2 == [type(each) for each in ends]
    assert 1.0 <= time.monotonic() - began < 30.0
