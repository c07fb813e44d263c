"""A folder with many runs holds something odd; it has a row that says why, and hides no other run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof.cli.runs import runs
from crashproof.dashboard.responses import UnreadableRun
from crashproof.dashboard.watched_runs import WatchedRuns
from crashproof.reading.discovery import RunSearch
from crashproof.records.lines.checksummed_line import add_checksum


def zeros(progress: Path) -> None:
    for path in progress.glob("*.json*"):
        path.write_bytes(b"\0" * 99)


def link_nowhere(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("/nowhere/at/all")


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ODD_RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zeros": (zeros, "records are lost"),
    "newer": (
        lambda progress: (progress / "events.jsonl").write_bytes(add_checksum(b'{"event":"x","v":99}')),
        "format version 99",
    ),
    "pipe": (lambda progress: put_pipe(progress / "metrics.jsonl"), "a named pipe"),
    "folder": (lambda progress: put_folder(progress / "events.jsonl"), "a folder"),
    "unmounted": (link_nowhere, "a link that leads"),
}


@pytest.fixture
def root(tmp_path: Path, open_tracker: Callable[..., Any], update: Callable[..., None]) -> Path:
    """A good run among odd ones, a broken link, and a pipe."""
    for name in ("good", *ODD_RUNS):
        tracker = open_tracker(output_dir=tmp_path / "root" / name)
        update(tracker, 1)
        tracker.close()
    for name, (spoil, _) in ODD_RUNS.items():
        spoil(tmp_path / "root" / name / "progress")
    (tmp_path / "root" / "old").symlink_to("/nowhere/at/all")
    os.mkfifo(tmp_path / "root" / "pipe of a shell")
    return tmp_path / "root"


def test_the_command_lists_each_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(root)
    rows = capsys.readouterr().out.splitlines()

    assert any(row.startswith("good ") for row in rows)
    for name, (_, reason) in ODD_RUNS.items():
        assert any(row.startswith(f"{name}: cannot be read") and reason in row for row in rows), name
    assert "old: cannot be read: it is a link that leads nowhere" in rows
    assert "pipe of a shell: cannot be read: it is a named pipe, not a folder" in rows


def test_the_page_lists_each_with_its_reason(root: Path) -> None:
    watched = WatchedRuns(root)
    rows = [each.row(now=0.0) for each in watched.all()] + watched.odd
    reasons = {row.name: row.health_reason for row in rows if isinstance(row, UnreadableRun)}

    assert {*ODD_RUNS, "old", "pipe of a shell"} == set(reasons)
    assert all(reason in reasons[name] for name, (_, reason) in ODD_RUNS.items())
    assert ["good"] == [row.name for row in rows if not isinstance(row, UnreadableRun)]


def test_a_folder_without_rights_is_a_row(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = root / "denied"
    denied.mkdir()
    stat = os.stat

    def refuse(path: Any, **given: Any) -> os.stat_result:
        # Tests may run as root, whom no permission stops.
        if str(path).startswith(f"{denied}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **given)

    monkeypatch.setattr(os, "stat", refuse)

    assert {"denied", "good"} <= set(RunSearch(root).runs)
