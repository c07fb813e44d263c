"""The power goes off at every operation on the disk; see `workload.py` for what is promised."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash.workload import Ledger, Workload, broken_promises, number_of_operations

from crashproof.testing import FaultyDisk, PowerLost, forget_open_runs


def lose_power(folder: Path, number: int, *, ignores_folder_syncs: bool = False) -> tuple[FaultyDisk, Ledger]:
    run = folder / str(number) / "run"
    run.mkdir(parents=True)
    disk = FaultyDisk(
        run, folder / str(number) / "scratch", fails_at=number, ignores_folder_syncs=ignores_folder_syncs
    )
    ledger = Ledger()
    with pytest.raises(PowerLost):
        Workload(run, disk, ledger).run()
    forget_open_runs()
    return disk, ledger


def broken_in_world(disk: FaultyDisk, ledger: Ledger, folder: Path, number: int, world: str) -> list[str]:
    target = folder / str(number) / world
    disk.after_power_loss(target, world, seed=number)
    return [
        f"operation {number}, {world}: {promise}"
        for promise in broken_promises(target, ledger, process_death_only=world == "kept")
    ]


@pytest.mark.parametrize("world", FaultyDisk.WORLDS)
def test_no_promise_is_broken_wherever_the_power_goes_off(tmp_path: Path, world: str) -> None:
    count = number_of_operations(tmp_path)

    broken: list[str] = []
    for number in range(count):
        disk, ledger = lose_power(tmp_path, number)
        broken += broken_in_world(disk, ledger, tmp_path, number, world)

    print(f"{count} crash points in the {world} world, {len(broken)} broken promises")
    assert [] == broken
    assert count > 100


def test_the_sweep_notices_a_disk_layer_that_forgets_to_sync_folders(tmp_path: Path) -> None:
    broken: list[str] = []
    for number in range(10, number_of_operations(tmp_path), 5):
        disk, ledger = lose_power(tmp_path, number, ignores_folder_syncs=True)
        broken += broken_in_world(disk, ledger, tmp_path, number, "strict")

    print(f"{len(broken)} broken promises without folder syncs")
    assert broken
