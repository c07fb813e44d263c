"""A tool edits or removes the files of a run while its writer lives; the run stays whole, and says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.errors import RunClosed
from crashproof.records.states import AlertKind, AttemptState

STEPS = list(range(1, 9))


@pytest.fixture
def tracker(
    open_tracker: Callable[..., ProgressTracker], update: Callable[..., None], save_checkpoint: Callable[..., Path]
) -> ProgressTracker:
    """Four steps, a checkpoint and a paid answer; it looks at its files when it is saved or closed."""
    tracker = open_tracker()
    tracker.record_api_response("key", {"text": "paid"}, 0.5)
    for step in range(1, 5):
        update(tracker, step)
    save_checkpoint(tracker, 4)
    return tracker


def replace(path: Path, content: bytes) -> None:
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def rotate(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.1"))
    path.touch()


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ALTERED: dict[str, Callable[[Path], Any]] = {
    "rm -r progress": lambda progress: shutil.rmtree(progress),
    "mv progress progress.bak": lambda progress: progress.rename(progress.with_name("progress.bak")),
    "rm metrics.jsonl": lambda progress: (progress / "metrics.jsonl").unlink(),
    "rm events.jsonl": lambda progress: (progress / "events.jsonl").unlink(),
    "sed -i": lambda progress: replace(
        progress / "metrics.jsonl", (progress / "metrics.jsonl").read_bytes().replace(b"\n", b"\r\n")
    ),
    "git checkout of an older state": lambda progress: replace(progress / "events.jsonl", b""),
    "> metrics.jsonl": lambda progress: (progress / "metrics.jsonl").write_bytes(b""),
    "> events.jsonl": lambda progress: (progress / "events.jsonl").write_bytes(b""),
    "an editor that writes in place": lambda progress: (progress / "metrics.jsonl").write_bytes(
        (progress / "metrics.jsonl").read_bytes().replace(b"0.001", b"0.01")
    ),
    "rotation of logs": lambda progress: rotate(progress / "metrics.jsonl"),
    "rotation by copying": lambda progress: [each.write_bytes(b"") for each in progress.glob("[me]*.jsonl")],
    "echo >> metrics.jsonl": lambda progress: append(progress / "metrics.jsonl", b"hello\n"),
    "printf >> events.jsonl": lambda progress: append(progress / "events.jsonl", b"hello"),
    "a folder in its place": lambda progress: put_a_folder(progress / "metrics.jsonl"),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_the_writer_writes_its_journals_again_and_goes_on(
    tracker: ProgressTracker,
    update: Callable[..., None],
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
    alter: Callable[[Path], Any],
) -> None:
    alter(run_dir / "progress")
    for step in (5, 6):
        update(tracker, step)
    tracker.save()
    for step in (7, 8):
        update(tracker, step)
    answer = tracker.get_api_response("key")
    tracker.close()
    reader = RunReader.open(run_dir)
    session = reader.session()

    assert {"text": "paid"} == answer
    assert STEPS == [line.step for line in reader.history()]
    assert (8, [4], AttemptState.COMPLETED) == (
        session.steps_completed,
        list(session.checkpoints),
        session.attempts[-1].how,
    )
    assert [] == reader.problems()
    assert AlertKind.JOURNAL_ALTERED in [each.kind for each in session.alerts]
    assert 1 == sum("Something has altered the journals" in each for each in caplog.messages)


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_a_kill_after_that_leaves_a_run_that_resumes_without_its_snapshots(
    tracker: ProgressTracker, run_dir: Path, left_by_a_kill: Callable[[Path], Path], alter: Callable[[Path], Any]
) -> None:
    session_id = tracker.session.session_id
    alter(run_dir / "progress")
    tracker.save()
    left = left_by_a_kill(run_dir)
    for path in (left / "progress").glob("*.json"):
        path.unlink()
    session = RunReader.open(left).session()

    assert (session_id, 4, [4]) == (session.session_id, session.steps_completed, list(session.checkpoints))


def test_what_was_in_the_place_of_a_journal_is_kept(tracker: ProgressTracker, run_dir: Path) -> None:
    replace(run_dir / "progress" / "metrics.jsonl", b"somebody's own\n")
    tracker.save()

    assert b"somebody's own\n" == (run_dir / "progress" / "set_aside" / "metrics.jsonl").read_bytes()


def test_lines_that_nobody_knows_any_more_are_counted(
    tracker: ProgressTracker, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_dir / "progress" / "api_recovery.jsonl").write_bytes(b"")
    tracker.save()

    assert None is tracker.get_api_response("key")
    assert any("api_recovery.jsonl was shortened" in each and "lines lost: 1" in each for each in caplog.messages)


def test_the_heartbeat_notices_within_seconds(
    open_tracker: Callable[..., ProgressTracker], update: Callable[..., None], run_dir: Path
) -> None:
    beats = TrackerSettings(sync_interval_seconds=0.02, summary_interval_seconds=0.02)
    tracker = open_tracker(settings=beats)
    update(tracker, 1)
    shutil.rmtree(run_dir / "progress")
    while not (run_dir / "progress" / "session.json").exists():
        update(tracker, tracker.session.steps_completed + 1)

    assert 1 == next(RunReader.open(run_dir).history()).step


@pytest.mark.parametrize("name", ["session.json", "checkpoints.json", "progress.json"])
def test_a_removed_snapshot_is_written_again(tracker: ProgressTracker, run_dir: Path, name: str) -> None:
    (run_dir / "progress" / name).unlink()
    tracker._upkeep.check_sole_writer()

    assert (run_dir / "progress" / name).exists()


def test_a_run_whose_journals_cannot_be_written_again_is_not_called_complete(
    open_tracker: Callable[..., ProgressTracker], update: Callable[..., None], run_dir: Path
) -> None:
    tracker = open_tracker()
    update(tracker, 1)
    shutil.rmtree(run_dir / "progress")
    (run_dir / "progress").write_text("a file in the place of the folder")

    with pytest.raises(RunClosed, match=r"were altered and cannot be written again"):
        tracker.close()
