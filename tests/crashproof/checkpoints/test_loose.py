from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof.checkpoints.loose import find_loose
from crashproof.disk.run_folder import RunFolder


@pytest.fixture
def archived(
    open_tracker: Callable[..., Any], save_checkpoint: Callable[..., Path], update: Callable[..., None], run_dir: Path
) -> RunFolder:
    """A folder whose session was archived with its checkpoint, before the next one began."""
    tracker = open_tracker()
    update(tracker, 3)
    save_checkpoint(tracker, 3)
    tracker.close()
    open_tracker({"another": "config"}).close()
    for path in (run_dir / "progress").glob("*.json*"):
        path.unlink()
    return RunFolder.under(run_dir)


def test_a_file_of_an_archived_session_that_came_back_is_not_loose(archived: RunFolder) -> None:
    (kept,) = archived.archive.glob("*/checkpoints/checkpoint_3.pt")
    shutil.copy(kept, archived.root)

    assert [] == find_loose(archived)


def test_another_file_under_the_same_name_is(archived: RunFolder) -> None:
    (archived.root / "checkpoint_3.pt").write_bytes(b"of a later session")

    assert [("checkpoint_3.pt", "no record of it can be read")] == find_loose(archived)


def test_of_very_many_the_newest_are_named(archived: RunFolder) -> None:
    for step in range(10, 30):
        (archived.root / f"checkpoint_{step}.pt").touch()
    found = find_loose(archived)

    assert ("checkpoint_20.pt", ("10 more", "likewise")) == (found[0][0], found[-1])
