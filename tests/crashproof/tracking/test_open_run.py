from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crashproof import RunReader
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import (
    ConfigChanged,
    ConfigError,
    CrashproofError,
    NewerFormat,
    NoUsableCheckpoint,
    RunInUse,
    StorageError,
    StorageUnwritable,
)
from crashproof.reading.run_state import read_run
from crashproof.records.events import AttemptStarted, ConfigContinued, DamageFound, TargetChanged
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.testing import FaultyDisk

CONFIG = {"train": {"batch_size": 32, "steps": 100}, "progress": {"interval": 5}, "run_name": "first"}
OTHER = {"train": {"batch_size": 64, "steps": 100}, "progress": {"interval": 5}, "run_name": "first"}
SNAPSHOTS = ["session.json", "progress.json", "checkpoints.json"]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "writer.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def ended_run(open_tracker, update, save_checkpoint, clock, run_dir):
    """A run of two attempts with a bit of everything, closed in good order."""
    for first_step in (1, 8):
        tracker = open_tracker(CONFIG)
        for step in range(first_step, first_step + 10):
            clock.advance(1.7)
            update(tracker, step, loss=3.0 / step)
        tracker.record_pause(0.3)
        save_checkpoint(tracker, first_step + 9, seconds=0.1)
        tracker.record_api_response(f"key{first_step}", {"text": "answer"}, cost=0.1)
        tracker.record_connection_failure(2, "refused")
        tracker.get_api_response("key1")
        tracker.close()
    return run_dir


def test_all_files_are_there_from_the_first_moment(open_tracker, run_dir):
    open_tracker()

    assert {
        "api_recovery.jsonl",
        "api_requests.jsonl",
        "checkpoints.json",
        "events.jsonl",
        "metrics.jsonl",
        "progress.json",
        "session.json",
        "writer.lock",
    } == {path.name for path in (run_dir / "progress").iterdir()}


def test_a_second_start_continues_the_session(open_tracker, ended_run):
    tracker = open_tracker(CONFIG)

    assert (17, 3) == (tracker.session.steps_completed, len(tracker.session.attempts))
    assert [] == RunReader.open(ended_run).problems()


def test_a_session_that_exists_keeps_its_name(open_tracker):
    names = [open_tracker(session_id=name).session.session_id for name in ("mine", "another")]

    assert ["mine", "mine"] == names


def test_a_generated_name_says_what_it_is(open_tracker):
    assert open_tracker().session.session_id.startswith("training_")


@pytest.mark.parametrize("name", [" ", "a/b", "..", ".hidden", "a\0b"])
def test_a_session_name_must_be_a_folder_name(open_tracker, run_dir, name):
    with pytest.raises(ConfigError, match="session_id"):
        open_tracker(session_id=name)

    assert not run_dir.exists()


@pytest.mark.parametrize("delete", [pytest.param(True, id="deleted"), pytest.param(False, id="garbled")])
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_each_snapshot_is_rebuilt_as_it_was(open_tracker, ended_run, left_by_a_kill, clock, name, delete, read_json):
    damaged = left_by_a_kill(ended_run)
    whole = left_by_a_kill(ended_run)
    path = damaged / "progress" / name
    path.unlink() if delete else path.write_bytes(path.read_bytes()[:-20] + b"garbage")
    for output_dir in (damaged, whole):
        open_tracker(CONFIG, output_dir=output_dir).close()

    assert {name: read_json(whole / "progress" / name) for name in SNAPSHOTS} == {
        name: read_json(damaged / "progress" / name) for name in SNAPSHOTS
    }
    assert [] == RunReader.open(damaged).problems()


def test_all_snapshots_deleted_are_rebuilt_as_they_were(open_tracker, ended_run, left_by_a_kill, read_json):
    damaged, whole = left_by_a_kill(ended_run), left_by_a_kill(ended_run)
    for name in SNAPSHOTS:
        (damaged / "progress" / name).unlink()
    for output_dir in (damaged, whole):
        open_tracker(CONFIG, output_dir=output_dir).close()

    assert [read_json(whole / "progress" / name) for name in SNAPSHOTS] == [
        read_json(damaged / "progress" / name) for name in SNAPSHOTS
    ]


def test_a_torn_last_line_is_quarantined_and_training_continues(open_tracker, update, ended_run, caplog):
    metrics = ended_run / "progress" / "metrics.jsonl"
    torn = metrics.read_bytes()[:-40]
    metrics.write_bytes(torn)
    tracker = open_tracker(CONFIG)
    update(tracker, 17)

    assert 17 == tracker.session.steps_completed
    assert torn.splitlines()[-1] + b"\n" == (ended_run / "progress" / "set_aside" / "metrics.jsonl").read_bytes()
    assert [True] == [f"{metrics} had 1 damaged part(s)" in message for message in caplog.messages]
    assert [("metrics.jsonl", "the last write was cut off")] == [
        (event.file, event.reason) for event in RunReader.open(ended_run).events() if isinstance(event, DamageFound)
    ]
    assert 1 == tracker.session.damage_found
    assert [] == RunReader.open(ended_run).problems()


def test_damage_in_the_middle_costs_only_its_own_line(open_tracker, ended_run, left_by_a_kill):
    run = left_by_a_kill(ended_run)
    (run / "progress" / "session.json").unlink()
    metrics = run / "progress" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"step":3,', b'"step":4,'))
    open_tracker(CONFIG, output_dir=run)

    assert [1, 2, *range(4, 18)] == [line.step for line in RunReader.open(run).history()]
    assert [] == RunReader.open(run).problems()


def test_lines_that_ran_together_are_taken_apart(open_tracker, ended_run, left_by_a_kill):
    run = left_by_a_kill(ended_run)
    before = RunReader.open(run).session()
    (run / "progress" / "session.json").unlink()
    for name in ("metrics.jsonl", "events.jsonl"):
        path = run / "progress" / name
        lines = path.read_bytes().splitlines(keepends=True)
        lines[4:6] = [lines[4][:-1] + b"\0" + lines[5]]
        path.write_bytes(b"".join(lines))
    open_tracker(CONFIG, output_dir=run).close()
    after = RunReader.open(run).session()

    assert before.metrics_history == after.metrics_history
    assert before.checkpoints == after.checkpoints
    assert [] == RunReader.open(run).problems()


def test_a_run_whose_first_event_is_damaged_keeps_everything_else(open_tracker, ended_run, left_by_a_kill):
    run = left_by_a_kill(ended_run)
    (run / "progress" / "session.json").unlink()
    events = run / "progress" / "events.jsonl"
    events.write_bytes(b"X" + events.read_bytes()[1:])
    tracker = open_tracker(CONFIG, output_dir=run)

    assert (17, [10, 17]) == (tracker.session.steps_completed, list(tracker.session.checkpoints))
    assert CONFIG == tracker.session.config
    assert [] == RunReader.open(run).problems()


def test_a_run_whose_only_event_was_torn_begins_anew_without_losing_the_piece(open_tracker, tmp_path):
    progress = tmp_path / "torn" / "progress"
    progress.mkdir(parents=True)
    (progress / "events.jsonl").write_bytes(b'{"event":"session_st')
    tracker = open_tracker(CONFIG, output_dir=tmp_path / "torn")

    assert 0 == tracker.session.steps_completed
    assert b'{"event":"session_st\n' == (progress / "set_aside" / "events.jsonl").read_bytes()
    assert [] == RunReader.open(tmp_path / "torn").problems()


def test_what_cut_off_writes_left_is_removed(open_tracker, ended_run):
    partials = [ended_run / ".checkpoint_99.pt.crashproof-partial", ended_run / "progress" / ".x.crashproof-partial"]
    for partial in partials:
        partial.touch()
    open_tracker(CONFIG)

    assert [False, False] == [partial.exists() for partial in partials]


def test_a_changed_config_sets_the_old_session_aside_and_names_the_keys(open_tracker, ended_run, caplog):
    old = RunReader.open(ended_run).session()
    tracker = open_tracker(OTHER)
    archived = ended_run / "progress" / "archive" / old.session_id

    assert (0, {}) == (tracker.session.steps_completed, tracker.session.checkpoints)
    assert old.session_id != tracker.session.session_id
    assert {"session.json", "progress.json", "checkpoints.json", "metrics.jsonl", "events.jsonl", "checkpoints"} == {
        path.name for path in archived.iterdir()
    }
    assert ["checkpoint_10.pt", "checkpoint_17.pt"] == sorted(
        path.name for path in (archived / "checkpoints").iterdir()
    )
    assert [True] == ["train.batch_size: 32 → 64" in message for message in caplog.messages]
    assert [] == RunReader.open(ended_run).problems()


def test_an_archived_session_can_still_be_read(open_tracker, ended_run):
    old = RunReader.open(ended_run).session()
    open_tracker(OTHER)
    archived = RunReader.open(ended_run / "progress" / "archive" / old.session_id)

    assert old.metrics_history == archived.session().metrics_history
    assert [] == archived.problems()


def test_paid_answers_outlive_the_session_that_paid_for_them(open_tracker, ended_run):
    tracker = open_tracker(OTHER)

    assert {"text": "answer"} == tracker.get_api_response("key1")
    assert 0 == tracker.session.api_responses_saved


def test_sessions_of_the_same_name_get_archives_of_their_own(open_tracker, run_dir):
    for config in (CONFIG, OTHER, CONFIG):
        open_tracker(config, session_id="mine")

    assert {"mine", "mine.1"} == {path.name for path in (run_dir / "progress" / "archive").iterdir()}


def test_a_changed_config_can_be_an_error_that_changes_nothing(open_tracker, ended_run):
    before = contents(ended_run)
    with pytest.raises(ConfigChanged, match=r"train.batch_size: 32 → 64") as refused:
        open_tracker(OTHER, on_config_change="error")

    assert ["train.batch_size: 32 → 64"] == refused.value.changed
    assert before == contents(ended_run)


def test_a_run_may_go_on_with_a_changed_config(open_tracker, ended_run, caplog):
    tracker = open_tracker(OTHER, on_config_change="continue")

    assert 17 == tracker.session.steps_completed
    assert OTHER == tracker.session.config
    assert [["train.batch_size: 32 → 64"]] == [
        event.changed for event in RunReader.open(ended_run).events() if isinstance(event, ConfigContinued)
    ]
    assert [True] == ["train.batch_size: 32 → 64" in message for message in caplog.messages]


def test_a_config_that_was_gone_on_with_is_the_config_from_then_on(open_tracker, ended_run):
    open_tracker(OTHER, on_config_change="continue").close()

    assert 17 == open_tracker(OTHER, on_config_change="error").session.steps_completed


def test_a_fresh_start_archives_the_old_session_even_if_the_config_is_the_same(open_tracker, ended_run, caplog):
    tracker = open_tracker(CONFIG, fresh=True)

    assert 0 == tracker.session.steps_completed
    assert 1 == len(list((ended_run / "progress" / "archive").iterdir()))
    assert [True] == ["A new session begins, as requested" in message for message in caplog.messages]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"progress": {"interval": 50}}, id="progress"),
        pytest.param({"run_name": "second"}, id="run-name"),
        pytest.param({"output_dir": "elsewhere"}, id="output-folder"),
        pytest.param({"logging": {"level": "debug"}}, id="logging"),
        pytest.param({"train": {"batch_size": 32, "steps": 999}}, id="longer-training"),
    ],
)
def test_keys_that_cannot_change_the_result_do_not_end_a_session(open_tracker, ended_run, change):
    tracker = open_tracker(CONFIG | change, on_config_change="error")

    assert 17 == tracker.session.steps_completed


def test_a_longer_target_continues_the_session(open_tracker, ended_run):
    tracker = open_tracker(CONFIG, 500, on_config_change="error")

    assert (17, 500) == (tracker.session.steps_completed, tracker.session.total_steps_target)
    assert 3.4 == pytest.approx(tracker.get_progress_summary()["progress_pct"])
    assert [500] == [
        event.total_steps for event in RunReader.open(ended_run).events() if isinstance(event, TargetChanged)
    ]


@pytest.mark.parametrize(
    "name, content",
    [
        ("session.json", b'{"v":3,"session_id":"s"}'),
        ("metrics.jsonl", b'{"v":2,"step":9}'),
        ("events.jsonl", b'{"event":"dreamt","timestamp":1.0,"attempt":1,"v":2}'),
        ("api_recovery.jsonl", b'{"v":2,"prompt_hash":"a"}'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["same-config", "other-config"])
def test_a_run_of_a_newer_version_is_refused_and_untouched(open_tracker, ended_run, name, content, config):
    path = ended_run / "progress" / name
    path.write_bytes(add_checksum(content) if name.endswith(".json") else path.read_bytes() + add_checksum(content))
    before = contents(ended_run)

    with pytest.raises(NewerFormat, match=name):
        open_tracker(config)
    assert before == contents(ended_run)


def test_a_run_of_a_newer_version_can_be_opened_once_it_is_gone(open_tracker, ended_run):
    path = ended_run / "progress" / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + add_checksum(b'{"v":2,"step":9}'))
    with pytest.raises(NewerFormat):
        open_tracker(CONFIG)
    path.write_bytes(before)

    assert 17 == open_tracker(CONFIG).session.steps_completed


@pytest.mark.parametrize("total_steps", [0, -1, 1.5, "ten", None, float("nan")])
def test_a_run_needs_a_whole_number_of_steps(open_tracker, run_dir, total_steps):
    with pytest.raises(ConfigError, match="total_steps"):
        open_tracker(total_steps=total_steps)

    assert not run_dir.exists()


def test_a_whole_number_of_steps_may_come_from_numpy(open_tracker):
    assert [100, 100] == [
        open_tracker(total_steps=steps).session.total_steps_target for steps in (np.int64(100), 100.0)
    ]


@pytest.mark.parametrize("config", [None, "train: fast", ["train"], 3])
def test_a_config_must_be_a_mapping(open_tracker, run_dir, config):
    with pytest.raises(ConfigError, match="must be a mapping"):
        open_tracker(config)

    assert not run_dir.exists()


def test_an_unknown_answer_to_a_changed_config_is_refused_with_the_known_ones(open_tracker, run_dir):
    with pytest.raises(ConfigError, match="archive, continue, error"):
        open_tracker(on_config_change="ignore")

    assert not run_dir.exists()


def test_a_file_in_place_of_the_folder_is_an_error(open_tracker, run_dir):
    run_dir.mkdir()
    (run_dir / "progress").write_text("a file")

    with pytest.raises(StorageUnwritable, match="progress cannot be written"):
        open_tracker()


def test_an_archiving_that_a_crash_cut_off_is_finished_at_the_next_start(open_tracker, ended_run):
    session = RunReader.open(ended_run).session()
    incoming = ended_run / "progress" / "archive" / f".incoming-{session.session_id}"
    (incoming / "checkpoints").mkdir(parents=True)
    (ended_run / "checkpoint_10.pt").rename(incoming / "checkpoints" / "checkpoint_10.pt")
    (ended_run / "progress" / "progress.json").rename(incoming / "progress.json")
    tracker = open_tracker(CONFIG)
    archived = ended_run / "progress" / "archive" / session.session_id

    assert 0 == tracker.session.steps_completed
    assert ["checkpoint_10.pt", "checkpoint_17.pt"] == sorted(
        path.name for path in (archived / "checkpoints").iterdir()
    )
    assert session.metrics_history == RunReader.open(archived).session().metrics_history


def test_an_attempt_says_where_it_runs_and_of_which_code(open_tracker, run_dir):
    open_tracker()
    started = next(event for event in RunReader.open(run_dir).events() if isinstance(event, AttemptStarted))

    assert (socket.gethostname(), os.getpid(), 1) == (started.host, started.pid, started.attempt)
    assert started.git_commit is None or len(started.git_commit) == 40


def test_without_git_an_attempt_names_no_commit(open_tracker, monkeypatch):
    monkeypatch.setenv("PATH", "")

    assert open_tracker().session.attempts[0].git_commit is None


def test_an_opening_that_fails_anywhere_lets_the_run_go(open_tracker, ended_run, left_by_a_kill, tmp_path):
    counting = FaultyDisk(ended_run, tmp_path / "scratch")
    open_tracker(CONFIG, disk=counting).close()
    failed_at = []
    for number in range(counting.num_operations):
        run = left_by_a_kill(ended_run)
        disk = FaultyDisk(run, tmp_path / f"scratch_{number}", fails_at=number, error=errno.EACCES)
        try:
            open_tracker(CONFIG, output_dir=run, disk=disk).close()
        except (StorageUnwritable, OSError):
            failed_at.append(number)
        assert RunReader.open(run).holder() is None
        assert 17 == open_tracker(CONFIG, output_dir=run).session.steps_completed
        assert [] == RunReader.open(run).problems()

    # Snapshots may stay old; whatever comes before them is needed.
    assert len(failed_at) >= 5


def test_a_lost_journal_of_events_is_begun_again_from_the_snapshot(open_tracker, ended_run):
    (ended_run / "progress" / "events.jsonl").unlink()
    session_id = open_tracker(CONFIG).session.session_id
    (ended_run / "progress" / "session.json").unlink()

    state = read_run(RunFolder.under(ended_run))
    assert (session_id, 17) == (state.session.session_id, state.session.steps_completed)


def test_a_copied_run_is_a_run_of_its_own(open_tracker, update, ended_run, tmp_path):
    shutil.copytree(ended_run, tmp_path / "copy")
    one, other = open_tracker(CONFIG), open_tracker(CONFIG, output_dir=tmp_path / "copy")
    update(one, 18)
    update(other, 18)

    assert [18, 18] == [one.session.steps_completed, other.session.steps_completed]


def test_a_second_process_gets_an_error_that_names_the_writer(open_tracker, run_dir):
    open_tracker()
    script = f"from crashproof import ProgressTracker; ProgressTracker({str(run_dir / 'progress')!r}, {{}}, 10)"
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert RunInUse.__name__ in second.stderr
    assert f"is being written by process {os.getpid()} on " in second.stderr


def forge_events(run_dir: Path, **replaced: str) -> None:
    """Change texts in a run's events, with checksums that are right again, as somebody who forges would."""
    events = RunFolder.under(run_dir).events
    lines = []
    for line in events.read_text().splitlines():
        for old, new in replaced.items():
            line = line.replace(old, new)
        lines.append(add_checksum(line.rpartition(',"crc":')[0].encode() + b"}"))
    events.write_bytes(b"".join(lines))
    for name in SNAPSHOTS:
        (RunFolder.under(run_dir).progress / name).unlink()


@pytest.mark.parametrize("name", ["../../../stolen", "/tmp/stolen", "..", "a/b"])
def test_a_session_id_from_somebody_else_leads_nothing_out_of_the_run(open_tracker, update, tmp_path, run_dir, name):
    tracker = open_tracker(CONFIG, session_id="thename")
    update(tracker, 1)
    tracker.close()
    forge_events(run_dir, thename=name)

    open_tracker(OTHER)

    assert [run_dir] == list(tmp_path.iterdir())
    (archived,) = RunFolder.under(run_dir).archive.iterdir()
    assert (archived / "metrics.jsonl").exists()


@pytest.mark.parametrize("claimed", ["progress/metrics.jsonl", "../theirs", "progress"])
def test_a_checkpoint_path_from_somebody_else_moves_nothing_but_checkpoints(
    open_tracker, update, save_checkpoint, tmp_path, run_dir, claimed
):
    tracker = open_tracker(CONFIG)
    update(tracker, 1)
    save_checkpoint(tracker, 1)
    tracker.close()
    (tmp_path / "theirs").write_text("theirs")
    forge_events(run_dir, **{"checkpoint_1.pt": claimed})

    tracker = open_tracker(CONFIG)
    with pytest.raises(NoUsableCheckpoint):
        tracker.get_recovery_checkpoint()
    tracker.close()
    open_tracker(OTHER)

    assert "theirs" == (tmp_path / "theirs").read_text()
    assert not list((RunFolder.under(run_dir).progress).glob("set_aside/*"))


def test_a_removal_from_somebody_else_deletes_nothing_of_the_run_s_own(open_tracker, update, run_dir):
    tracker = open_tracker(CONFIG)
    update(tracker, 1)
    tracker.close()
    folder = RunFolder.under(run_dir)
    removal = (
        b'{"event":"checkpoint_removed","timestamp":1.0,"attempt":1,"v":1,"checkpoints":['
        b'{"step":1,"checkpoint_path":"progress/metrics.jsonl"},{"step":2,"checkpoint_path":"progress/events.jsonl"},'
        b'{"step":3,"checkpoint_path":"../run"}],"verified":"x"}'
    )
    with folder.events.open("ab") as file:
        file.write(add_checksum(removal))

    open_tracker(CONFIG)

    assert folder.metrics.exists()
    assert 1 == RunReader(folder).session().steps_completed


def test_leftovers_of_saves_are_removed_where_the_checkpoints_lie_and_nowhere_else(
    open_tracker, update, tmp_path, run_dir
):
    tracker = open_tracker(CONFIG)
    theirs = tmp_path / "theirs"
    for parent in (run_dir / "ckpts" / "inner", run_dir / "other", theirs):
        parent.mkdir(parents=True)
    (run_dir / "linked").symlink_to(theirs)
    for number, parent in enumerate((run_dir / "ckpts" / "inner", run_dir / "linked", theirs), 1):
        update(tracker, number)
        (parent / f"step_{number}.pt").write_text("weights")
        tracker.record_checkpoint(number, parent / f"step_{number}.pt", number)
    tracker.close()
    left = [
        parent / ".step_9.pt.crashproof-partial"
        for parent in (run_dir / "ckpts" / "inner", run_dir / "other", theirs)
    ]
    for each in left:
        each.write_text("half")

    open_tracker(CONFIG)

    assert [False, True, True] == [each.exists() for each in left]


def test_a_leftover_that_cannot_be_removed_does_not_keep_a_run_closed(open_tracker, run_dir, tmp_path, caplog):
    class Stubborn(Disk):
        def remove_file(self, path: Path) -> None:
            if "partial" in path.name:
                raise PermissionError(errno.EACCES, "Permission denied")
            super().remove_file(path)

    open_tracker(CONFIG).close()
    (run_dir / ".x.crashproof-partial").write_text("half")

    open_tracker(CONFIG, disk=Stubborn())

    assert "Could not remove a partial file" in caplog.text


@pytest.mark.parametrize("name", ["session.json", "checkpoints.json", "progress.json", "curves.jsonl"])
def test_a_pipe_for_what_is_derived_costs_nothing(open_tracker, update, run_dir, name):
    tracker = open_tracker(CONFIG)
    update(tracker, 1)
    tracker.close()
    path = RunFolder.under(run_dir).progress / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    tracker = open_tracker(CONFIG)
    for step in range(2, 300):
        update(tracker, step)

    assert 299 == tracker.session.steps_completed


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl", "writer.lock"])
def test_a_pipe_for_a_journal_or_the_lock_is_an_error_in_words(open_tracker, run_dir, name):
    open_tracker(CONFIG).close()
    path = RunFolder.under(run_dir).progress / name
    path.unlink()
    os.mkfifo(path)

    with pytest.raises(StorageError, match=f"{name} .*a named pipe, not a regular file"):
        open_tracker(CONFIG)


@pytest.mark.parametrize("levels", [420, 500, 100_000])
def test_a_config_that_is_nested_too_deeply_is_refused(open_tracker, levels):
    config: dict[str, object] = {}
    for _ in range(levels):
        config = {"a": config}

    with pytest.raises(CrashproofError, match="nested"):
        open_tracker(config)
