"""The n-th operation on the disk fails, for every n; see `workload.py` for what is promised."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from crash.workload import Ledger, Workload, broken_promises, number_of_operations

from crashproof.errors import CrashproofError
from crashproof.testing import FaultyDisk, forget_open_runs


def fail_at(folder: Path, number: int, error: int, *, lasts: bool) -> tuple[Path, Ledger]:
    """Run until an error reaches the caller, or to the end; then the process dies."""
    run = folder / str(number) / "run"
    run.mkdir(parents=True)
    disk = FaultyDisk(run, folder / str(number) / "scratch", fails_at=number, error=error, lasts=lasts)
    ledger = Ledger()
    try:
        Workload(run, disk, ledger).run()
    except (CrashproofError, OSError) as refusal:
        print(f"operation {number}: {refusal}")
    forget_open_runs()
    return run, ledger


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(errno.ENOSPC, id="full disk"),
        pytest.param(errno.EIO, id="broken", marks=pytest.mark.long),
        pytest.param(errno.EROFS, id="read-only", marks=pytest.mark.long),
    ],
)
def test_no_promise_is_broken_whichever_operation_fails_once(tmp_path: Path, error: int) -> None:
    count = number_of_operations(tmp_path)

    broken: list[str] = []
    for number in range(count):
        run, ledger = fail_at(tmp_path, number, error, lasts=False)
        broken += [
            f"operation {number}: {promise}" for promise in broken_promises(run, ledger, process_death_only=False)
        ]

    print(f"{count} operations failed, {len(broken)} broken promises")
    assert [] == broken


def test_no_promise_is_broken_when_the_disk_stays_full(tmp_path: Path) -> None:
    broken: list[str] = []
    for number in range(0, number_of_operations(tmp_path), 2):
        run, ledger = fail_at(tmp_path, number, errno.ENOSPC, lasts=True)
        broken += [
            f"operation {number}: {promise}" for promise in broken_promises(run, ledger, process_death_only=False)
        ]

    assert [] == broken
