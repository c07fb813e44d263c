from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_checkpoints import write_accelerate, write_archive, write_hugging_face

from crashproof import RunReader, TrackerSettings, get_recovery_checkpoint
from crashproof.checkpoints.verify import problem_with
from crashproof.errors import DiskFull, NothingToAdopt, RunInUse, StorageUnwritable
from crashproof.records.events import AttemptStarted, CheckpointRecorded
from crashproof.rules.retention import KeepLatest
from crashproof.testing import FaultyDisk, PowerLost, forget_open_runs
from crashproof.tracking.adopt import Adoption, TornCheckpoint, adopt_checkpoints


@pytest.fixture
def old(run_dir: Path) -> Path:
    """What another system has left: three files, a folder of a Trainer, one of accelerate, and two torn ones."""
    for step in (100, 200):
        write_archive(run_dir / f"checkpoint_{step}.pt", b"step %d" % step)
    write_archive(run_dir / "step_250.pt")
    write_hugging_face(run_dir, 300, num_shards=2, log_history=[{"step": 300, "eval_loss": 1.5}])
    write_accelerate(run_dir, 350)
    torn = write_archive(run_dir / "checkpoint_400.pt")
    os.truncate(torn, 100)
    (write_hugging_face(run_dir, 450) / "optimizer.pt").unlink()
    (run_dir / "notes.txt").write_text("mine")
    return run_dir


WHOLE = ["checkpoint_100.pt", "checkpoint_200.pt", "step_250.pt", "checkpoint-300", "checkpoint_350"]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and folder / "progress" not in path.parents
    }


def paths(adoption: Adoption) -> list[str]:
    return [each.checkpoint_path for each in adoption.adopted]


def test_every_intact_checkpoint_of_other_code_is_recorded(old: Path, read_json: Callable[..., Any]) -> None:
    adoption = adopt_checkpoints(old, samples_per_step=8)

    assert WHOLE == paths(adoption)
    folder = RunReader.open(old).folder
    assert [None] * 5 == [problem_with(each, folder) for each in adoption.adopted]
    assert [(step * 8, ["adopted"], None) for step in (100, 200, 250, 300, 350)] == [
        (each.dataset_position, each.recovery_tags, each.metrics) for each in adoption.adopted
    ]
    assert ["100", "200", "250", "300", "350"] == list(read_json(folder.manifest)["checkpoints"])
    assert [True] * 3 == [path.exists() for path in (folder.session, folder.summary, folder.manifest)]
    assert [] == RunReader.open(old).problems()


def test_torn_ones_are_named_with_the_reason(old: Path) -> None:
    torn = adopt_checkpoints(old).torn

    assert [(400, "checkpoint_400.pt"), (450, "checkpoint-450")] == [(each.step, each.path) for each in torn]
    assert (
        TornCheckpoint(step=450, path="checkpoint-450", reason="optimizer.pt is missing beside scheduler.pt")
        == torn[1]
    )


def test_what_a_trainer_has_measured_is_kept_beside_its_checkpoint(old: Path) -> None:
    adopt_checkpoints(old)

    assert {"eval_loss": 1.5} == RunReader.open(old).session().checkpoints[300].evaluation


def test_nothing_of_the_users_is_moved_or_changed(old: Path) -> None:
    before = contents(old)
    adopt_checkpoints(old)

    assert before == contents(old)


def test_doing_it_twice_adds_nothing(old: Path) -> None:
    adopt_checkpoints(old)
    journal = (old / "progress" / "events.jsonl").read_bytes()
    again = adopt_checkpoints(old)

    assert ([], 5, 2) == (again.adopted, again.num_known, len(again.torn))
    assert journal == (old / "progress" / "events.jsonl").read_bytes()


def test_doing_it_again_adds_what_is_new(old: Path) -> None:
    adopt_checkpoints(old)
    write_archive(old / "checkpoint_500.pt")
    again = adopt_checkpoints(old)

    assert (["checkpoint_500.pt"], 5) == (paths(again), again.num_known)
    assert 6 == len(RunReader.open(old).session().checkpoints)


@pytest.mark.parametrize("config", [{"lr": 0.1}, {}], ids=["any config", "an empty config"])
def test_the_next_start_takes_it_up_whatever_its_config(
    old: Path, open_tracker: Callable[..., Any], update: Callable[..., None], config: dict[str, Any]
) -> None:
    adopt_checkpoints(old, samples_per_step=8)
    name = RunReader.open(old).session().session_id

    assert (old / "checkpoint_350", 2800) == get_recovery_checkpoint(old, config)
    tracker = open_tracker(config, 1000)
    offered = tracker.get_recovery_checkpoint()
    update(tracker, 351)
    tracker.close()
    session = RunReader.open(old).session()
    assert (350, str(old / "checkpoint_350")) == (offered.checkpoint_step, offered.checkpoint_path)
    assert (name, config, 1000, 351) == (
        session.session_id,
        session.config,
        session.total_steps_target,
        session.steps_completed,
    )
    assert not (old / "progress" / "archive").exists()
    assert repr(tracker.session) == repr(session)


def test_from_its_first_start_on_it_is_a_run_like_any_other(old: Path, open_tracker: Callable[..., Any]) -> None:
    adopt_checkpoints(old)
    open_tracker({"lr": 0.1}).close()
    same = open_tracker({"lr": 0.1})
    same.close()
    other = open_tracker({"lr": 0.2})

    assert 3 == len(same.session.attempts)
    assert {} == other.session.checkpoints
    archive = old / "progress" / "archive" / same.session.session_id
    assert sorted(WHOLE) == sorted(path.name for path in (archive / "checkpoints").iterdir())


def test_the_first_start_may_be_killed_before_it_has_written_its_snapshot(
    old: Path, open_tracker: Callable[..., Any], left_by_a_kill: Callable[[Path], Path]
) -> None:
    adopt_checkpoints(old)
    snapshot = (old / "progress" / "session.json").read_bytes()
    open_tracker({"lr": 0.1})
    left = left_by_a_kill(old)
    # As it was before that start.
    (left / "progress" / "session.json").write_bytes(snapshot)

    assert {"lr": 0.1} == RunReader.open(left).session().config
    assert 5 == len(open_tracker({"lr": 0.1}, output_dir=left).session.checkpoints)
    assert not (left / "progress" / "archive").exists()


def test_begun_anew_on_purpose_it_goes_to_the_archive(old: Path, open_tracker: Callable[..., Any]) -> None:
    adopt_checkpoints(old)

    assert {} == open_tracker({"lr": 0.1}, fresh=True).session.checkpoints
    assert 1 == len(list((old / "progress" / "archive").iterdir()))


def test_a_run_that_is_there_keeps_its_session_and_gets_what_it_has_not_recorded(
    run_dir: Path,
    open_tracker: Callable[..., Any],
    update: Callable[..., None],
    save_checkpoint: Callable[..., Path],
) -> None:
    tracker = open_tracker(total_steps=100)
    for step in range(1, 11):
        update(tracker, step)
    save_checkpoint(tracker, 10)
    tracker.close()
    # Another system has gone on saving beside it.
    write_archive(run_dir / "checkpoint_5.pt")
    adoption = adopt_checkpoints(run_dir)

    session = RunReader.open(run_dir).session()
    assert (["checkpoint_5.pt"], 1) == (paths(adoption), adoption.num_known)
    assert (tracker.session.session_id, tracker.session.config, 100) == (
        session.session_id,
        session.config,
        session.total_steps_target,
    )
    # The update of its step was tracked.
    assert 5 == session.checkpoints[5].metrics.step
    assert ["ended_early", "adopted"] == [
        RunReader.open(run_dir).summary(now=0.0)["status"],
        session.attempts[-1].how,
    ]
    assert 10 == open_tracker(total_steps=100).get_recovery_checkpoint().checkpoint_step


def test_what_was_adopted_is_never_removed_by_a_rule(
    old: Path, open_tracker: Callable[..., Any], save_checkpoint: Callable[..., Path]
) -> None:
    adopt_checkpoints(old)
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(1)))
    for step in (600, 700):
        save_checkpoint(tracker, step)

    assert [100, 200, 250, 300, 350, 700] == sorted(tracker.session.checkpoints)


def test_a_run_that_a_process_writes_is_left_alone(old: Path, open_tracker: Callable[..., Any]) -> None:
    tracker = open_tracker()

    with pytest.raises(RunInUse):
        adopt_checkpoints(old)
    assert {} == tracker.session.checkpoints


def test_a_run_that_another_process_writes_is_left_alone(old: Path) -> None:
    holds = (
        "import sys; from crashproof import ProgressTracker; ProgressTracker(sys.argv[1], {}, 10); "
        "print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holds, str(old / "progress")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert b"open\n" == other.stdout.readline()

        with pytest.raises(RunInUse, match=f"process {other.pid}"):
            adopt_checkpoints(old)


def nowhere(run_dir: Path) -> None:
    return None


def a_file(run_dir: Path) -> None:
    run_dir.write_text("mine")


def nothing_like_one(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "notes.txt").write_text("mine")


def only_torn_ones(run_dir: Path) -> None:
    write_archive(run_dir / "checkpoint_1.pt").write_bytes(b"")
    (run_dir / "checkpoint_2.json").write_text("{")


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        pytest.param(nowhere, "there is no such folder", id="no folder"),
        pytest.param(a_file, "there is no such folder", id="a file"),
        pytest.param(nothing_like_one, r"nothing in it is named like one \(checkpoint_<step>", id="nothing like one"),
        pytest.param(
            only_torn_ones,
            r"none is intact. checkpoint_1.pt: it is empty; checkpoint_2.json: it is no JSON. Restore",
            id="all torn",
        ),
    ],
)
def test_where_nothing_can_be_adopted_an_error_says_why_and_no_run_is_made(
    run_dir: Path, left: Callable[[Path], None], reason: str
) -> None:
    left(run_dir)

    with pytest.raises(NothingToAdopt, match=rf"^{run_dir} has no checkpoint to adopt: {reason}"):
        adopt_checkpoints(run_dir)
    assert not (run_dir / "progress").exists()


class DiskThatRefuses(FaultyDisk):
    """Cannot make folders."""

    def make_folder(self, path: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_folder_that_cannot_be_written_is_a_clear_error(old: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageUnwritable, match="cannot be written: Permission denied"):
        adopt_checkpoints(old, disk=DiskThatRefuses(old, tmp_path / "scratch"))


def test_a_folder_that_may_not_be_listed_is_a_clear_error(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Whoever runs the tests may be root, who may list everything.
    monkeypatch.setattr(Path, "iterdir", refuse)

    with pytest.raises(
        NothingToAdopt, match=r"the folder cannot be read \(Permission denied\). Change its permissions"
    ):
        adopt_checkpoints(old)


def test_wherever_it_is_cut_off_doing_it_again_completes_it(tmp_path: Path) -> None:
    def fill(number: str) -> Path:
        folder = tmp_path / number / "run"
        for step in (100, 200):
            write_archive(folder / f"checkpoint_{step}.pt")
        return folder

    whole = FaultyDisk(fill("whole"), tmp_path / "whole" / "scratch")
    adopt_checkpoints(tmp_path / "whole" / "run", disk=whole)
    for number in range(whole.num_operations):
        folder = fill(str(number))
        disk = FaultyDisk(folder, tmp_path / str(number) / "scratch", fails_at=number)
        with pytest.raises(PowerLost):
            adopt_checkpoints(folder, disk=disk)
        forget_open_runs()
        disk.after_power_loss(tmp_path / str(number) / "left", "strict")
        left = tmp_path / str(number) / "left"
        adopt_checkpoints(left)

        assert [100, 200] == sorted(RunReader.open(left).session().checkpoints), number
        assert left / "checkpoint_200.pt" == (get_recovery_checkpoint(left, {"any": 1}) or [None])[0]
        recorded = [each for each in RunReader.open(left).events() if isinstance(each, CheckpointRecorded)]
        assert 2 == len({each.checkpoint.checkpoint_path for each in recorded}) == len(recorded)


def test_on_a_full_disk_it_says_so(old: Path, tmp_path: Path) -> None:
    disk = FaultyDisk(old, tmp_path / "scratch", fails_at=12, error=errno.ENOSPC, lasts=True)

    with pytest.raises(DiskFull):
        adopt_checkpoints(old, disk=disk)
    forget_open_runs()
    adopt_checkpoints(old)
    assert [100, 200, 250, 300, 350] == sorted(RunReader.open(old).session().checkpoints)


def test_the_adoption_is_an_attempt_that_has_trained_nothing(old: Path, open_tracker: Callable[..., Any]) -> None:
    adopt_checkpoints(old)
    reader = RunReader.open(old)

    assert ("adopted", 0, 1) == tuple(
        reader.summary(now=0.0)[name] for name in ("status", "steps_completed", "attempt")
    )
    assert 1 == sum(isinstance(each, AttemptStarted) for each in reader.events())


def take_away(folder: Path, *names: str) -> None:
    (folder.parent / "shelf").mkdir()
    for name in names:
        (folder / name).rename(folder.parent / "shelf" / name)


def test_a_missing_checkpoint_is_forgotten_on_request_if_a_newer_one_is_intact(old: Path) -> None:
    adopt_checkpoints(old)
    take_away(old, "checkpoint_100.pt", "step_250.pt")
    unasked = adopt_checkpoints(old)
    asked = adopt_checkpoints(old, forgets_gone=True)

    assert ([], ["checkpoint_100.pt", "step_250.pt"]) == (unasked.forgotten, asked.forgotten)
    session = RunReader.open(old).session()
    assert [200, 300, 350] == sorted(session.checkpoints)
    assert [] == session.checkpoints_removing
    # Back from the shelf, it is there to be taken up again.
    (old.parent / "shelf" / "checkpoint_100.pt").rename(old / "checkpoint_100.pt")
    assert ["checkpoint_100.pt"] == paths(adopt_checkpoints(old))


@pytest.mark.parametrize("names", [["checkpoint_350"], WHOLE], ids=["the newest", "all"])
def test_a_run_never_forgets_that_it_has_been_somewhere(old: Path, names: list[str]) -> None:
    adopt_checkpoints(old)
    take_away(old, *names)

    assert [] == adopt_checkpoints(old, forgets_gone=True).forgotten
    assert 5 == len(RunReader.open(old).session().checkpoints)


def test_where_all_were_taken_away_and_the_run_has_its_own_all_are_forgotten(
    old: Path, open_tracker: Callable[..., Any], save_checkpoint: Callable[..., Path]
) -> None:
    adopt_checkpoints(old)
    tracker = open_tracker()
    save_checkpoint(tracker, 500, path=old / "mine.pt")
    tracker.close()
    take_away(old, *WHOLE, "checkpoint_400.pt", "checkpoint-450")

    assert 5 == len(adopt_checkpoints(old, forgets_gone=True).forgotten)
    with pytest.raises(NothingToAdopt):
        adopt_checkpoints(old, forgets_gone=True)
    assert [500] == list(RunReader.open(old).session().checkpoints)
