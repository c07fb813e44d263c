from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof.checkpoints.partials import sweep_before_start, sweep_partial_checkpoints
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import RunInUse
from crashproof.testing import forget_open_runs

OWN = (".checkpoint_50.crashproof-partial", ".checkpoint_100.pt.crashproof-partial")
OTHERS = (
    # Of a deletion that is under way.
    ".checkpoint_50.pt.removed.crashproof-partial",
    # Of other code that writes atomically beside the run.
    *(".weights.bin.crashproof-partial", ".checkpoint_best.pt.crashproof-partial", ".trial-a-0.crashproof-partial"),
    # Of other programs.
    *(".checkpoint_50.pt.tmp", "checkpoint_50.pt.part", ".checkpoint_50", "checkpoint_50.crashproof-partial"),
    # Whole.
    *("checkpoint_50", "checkpoint_100.pt"),
)


def leave(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).mkdir()
        (folder / name / "__0_0.distcp").write_bytes(b"half a shard")


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()} - {"progress"}


def test_only_what_this_trainer_leaves_is_swept(run_dir: Path) -> None:
    leave(run_dir, *OWN, *OTHERS)

    sweep_partial_checkpoints(RunFolder.under(run_dir))

    assert set(OTHERS) == names_in(run_dir)


def test_another_runs_partials_stay_wherever_it_lies(run_dir: Path) -> None:
    for other in (run_dir.parent / "beside", run_dir / "inside"):
        other.mkdir(parents=True)
        leave(other, *OWN)

    sweep_partial_checkpoints(RunFolder.under(run_dir))

    assert set(OWN) == names_in(run_dir.parent / "beside") == names_in(run_dir / "inside")


def test_a_link_is_removed_and_not_what_it_leads_to(run_dir: Path, tmp_path: Path) -> None:
    leave(tmp_path / "elsewhere", "shard")
    run_dir.mkdir()
    (run_dir / OWN[0]).symlink_to(tmp_path / "elsewhere")

    sweep_partial_checkpoints(RunFolder.under(run_dir))

    assert (set(), {"shard"}) == (names_in(run_dir), names_in(tmp_path / "elsewhere"))


def test_before_a_start_the_partials_of_a_killed_process_go(
    open_tracker: Callable[..., Any], run_dir: Path, left_by_a_kill: Callable[[Path], Path]
) -> None:
    open_tracker()
    left = left_by_a_kill(run_dir)
    leave(left, *OWN)

    sweep_before_start(RunFolder.under(left))

    assert set() == names_in(left)


def test_before_a_start_those_of_a_live_run_stay(
    open_tracker: Callable[..., Any], run_dir: Path, left_by_a_kill: Callable[[Path], Path]
) -> None:
    open_tracker()
    left = left_by_a_kill(run_dir)
    leave(left, *OWN)
    with RunFolder.under(left).lock.open() as lock:
        # As another process holds it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunInUse):
            sweep_before_start(RunFolder.under(left))

    assert set(OWN) == names_in(left)


def test_a_folder_without_a_run_gets_no_lock(run_dir: Path) -> None:
    run_dir.mkdir()

    sweep_before_start(RunFolder.under(run_dir))

    assert [] == list(run_dir.iterdir())


def test_the_lock_is_released_where_something_cannot_be_removed(
    open_tracker: Callable[..., Any], run_dir: Path
) -> None:
    class ReadOnly(Disk):
        def remove_tree(self, path: Path) -> None:
            raise OSError(30, "Read-only file system")

    open_tracker().close()
    leave(run_dir, *OWN)

    with pytest.raises(OSError, match="Read-only"):
        sweep_before_start(RunFolder.under(run_dir), disk=ReadOnly())

    forget_open_runs()
    open_tracker()
