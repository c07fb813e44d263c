from __future__ import annotations

import os
import threading

import msgspec
import pytest

from crashproof import RunReader
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NewerFormat, NotARun, UnknownRecord
from crashproof.reading.run_state import read_losses, read_run, read_snapshot
from crashproof.records.events import AlertRaised, AttemptEnded, AttemptStarted, SessionStarted
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.lines.codec import encode
from crashproof.records.snapshots import Manifest, ProgressFile, SessionFile


@pytest.fixture
def reader(run_dir):
    return RunReader.open(run_dir)


@pytest.fixture
def two_attempts(open_tracker, update, left_by_a_kill, run_dir):
    """A run killed at step 6 and resumed from step 4 up to 8, in a folder that nobody has open."""
    first = open_tracker()
    for step in range(1, 7):
        update(first, step, loss=1.0 / step)
    left = left_by_a_kill(run_dir)
    second = open_tracker(output_dir=left)
    for step in range(5, 9):
        update(second, step, loss=1.0 / step)
    second.close()
    return left


def test_a_folder_without_a_run_is_no_run(tmp_path):
    with pytest.raises(NotARun, match="holds no run"):
        RunReader.open(tmp_path)


@pytest.mark.parametrize("inner", [".", "progress"])
def test_a_run_is_found_by_its_output_folder_and_by_its_progress_folder(open_tracker, run_dir, inner):
    open_tracker()

    assert run_dir / "progress" == RunReader.open(run_dir / inner).folder.progress


def test_reading_changes_nothing(two_attempts):
    before = {path: path.read_bytes() for path in two_attempts.rglob("*") if path.is_file()}
    reader = RunReader.open(two_attempts)
    reader.session()
    reader.summary(now=0.0)
    answers = [list(reader.history()), list(reader.events()), reader.problems(), reader.holder()]

    assert answers[0]
    assert before == {path: path.read_bytes() for path in two_attempts.rglob("*") if path.is_file()}


def test_the_history_has_each_step_once_and_the_newest_attempt_wins(two_attempts):
    history = list(RunReader.open(two_attempts).history())

    assert [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (8, 2)] == [
        (line.step, line.attempt) for line in history
    ]


def test_superseded_updates_are_kept(two_attempts):
    steps = [line.step for line in RunReader.open(two_attempts).all_updates()]

    assert [1, 2, 3, 4, 5, 6, 5, 6, 7, 8] == steps
    assert 2 == RunReader.open(two_attempts).session().steps_recomputed


def test_the_history_ends_where_the_journal_ended_at_the_call(open_tracker, update, reader_of_live_run):
    tracker, reader = reader_of_live_run
    history = reader.history()
    seen = [next(history).step]
    update(tracker, 1)
    seen += [line.step for line in history]

    assert [1, 2, 3] == seen


@pytest.fixture
def reader_of_live_run(open_tracker, update, run_dir):
    tracker = open_tracker()
    for step in (1, 2, 3):
        update(tracker, step)
    return tracker, RunReader.open(run_dir)


def test_events_come_in_order(two_attempts):
    kinds = [type(event) for event in RunReader.open(two_attempts).events()]

    assert [SessionStarted, AttemptStarted, AttemptStarted, AlertRaised, AttemptEnded] == kinds


def test_a_run_is_read_while_it_is_written(open_tracker, update, run_dir):
    tracker = open_tracker(total_steps=2000)
    reader = RunReader.open(run_dir)
    writer = threading.Thread(target=lambda: [update(tracker, step) for step in range(1, 1001)])
    writer.start()
    seen = [0]
    while writer.is_alive() or seen[-1] < 1000:
        history = [line.step for line in reader.history()]
        assert list(range(1, len(history) + 1)) == history
        seen.append(reader.session().steps_completed)
    writer.join()

    assert sorted(seen) == seen
    assert [] == reader.problems()


def test_the_session_of_a_live_run_is_the_one_that_its_writer_has(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker()
    for step in range(1, 30):
        update(tracker, step, loss=1 / step)
        if step % 10 == 0:
            save_checkpoint(tracker, step)

    assert tracker.session == RunReader.open(run_dir).session()


def test_an_unfinished_last_line_is_left_for_the_next_call(reader_of_live_run):
    _, reader = reader_of_live_run
    line = encode(next(reader.all_updates()))
    with reader.folder.metrics.open("ab") as file:
        file.write(line[:20])
    steps = [each.step for each in reader.history()]

    assert [1, 2, 3] == steps
    assert 3 == reader.session().steps_completed
    assert ["metrics.jsonl, byte "] == [problem[:20] for problem in reader.problems()]


def test_the_writer_of_the_run_is_known(open_tracker, run_dir):
    tracker = open_tracker()
    reader = RunReader.open(run_dir)
    holder = reader.holder()
    tracker.close()

    assert os.getpid() == holder.pid
    assert reader.holder() is None


def test_a_run_whose_process_exited_without_recording_a_shutdown_has_crashed(
    open_tracker, update, left_by_a_kill, run_dir
):
    tracker = open_tracker()
    update(tracker, 1)
    alive = RunReader.open(run_dir).summary(now=0.0)["status"]
    dead = RunReader.open(left_by_a_kill(run_dir)).summary(now=0.0)["status"]

    assert ("running", "crashed") == (alive, dead)


def test_the_summary_has_the_fields_of_the_progress_file(open_tracker, update, run_dir, read_json):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.close()
    beside = {"v", "crc", "lines_waiting", *ProgressFile.__struct_fields__}
    of_the_file = read_json(tracker.progress_file).keys() - beside

    assert of_the_file == RunReader.open(run_dir).summary(now=0.0).keys()


def test_every_damage_is_a_problem(two_attempts):
    events = two_attempts / "progress" / "events.jsonl"
    events.write_bytes(events.read_bytes().replace(b"attempt_started", b"attempt_Started"))
    metrics = two_attempts / "progress" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-5])

    problems = RunReader.open(two_attempts).problems()
    assert [("events.jsonl", "its checksum does not match")] * 2 + [
        ("metrics.jsonl", "the last write was cut off")
    ] == [(each.partition(",")[0], each.partition(": ")[2].partition(" (")[0]) for each in problems]


def test_a_damaged_event_does_not_hide_its_neighbours(two_attempts):
    events = two_attempts / "progress" / "events.jsonl"
    events.write_bytes(events.read_bytes().replace(b"attempt_started", b"attempt_Started", 1))

    kinds = [type(event) for event in RunReader.open(two_attempts).events()]
    assert [SessionStarted, AttemptStarted, AlertRaised, AttemptEnded] == kinds


def test_damage_before_the_mark_of_a_snapshot_does_not_stop_the_reader(two_attempts):
    metrics = two_attempts / "progress" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"step":2,', b'"step":9,'))

    reader = RunReader.open(two_attempts)
    assert [1, 3, 4, 5, 6, 7, 8] == [line.step for line in reader.history()]
    assert 8 == reader.session().steps_completed


def test_the_past_is_taken_from_the_snapshot_and_only_the_tail_from_the_journals(two_attempts):
    folder = RunFolder.under(two_attempts)
    state = read_run(folder)
    anew = read_run(folder, trust_snapshot=False)

    assert (True, False) == (state.read_from_snapshot, anew.read_from_snapshot)
    assert anew.session == state.session
    assert anew.marks == state.marks


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-300]), id="cut-short"),
        pytest.param(lambda path: path.unlink(), id="deleted"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9] + b"X" * 9), id="another-end"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1)), id="shifted"),
    ],
)
def test_a_snapshot_of_other_journals_is_ignored(two_attempts, name, damage):
    damage(two_attempts / "progress" / name)

    assert not read_run(RunFolder.under(two_attempts)).read_from_snapshot


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"garbage\n", id="garbage"),
        pytest.param(b'{"v":1}\n', id="no-seal"),
        pytest.param(add_checksum(b'{"v":1,"other":"record"}'), id="another-record"),
    ],
)
def test_an_unreadable_snapshot_is_ignored(tmp_path, content):
    path = tmp_path / "session.json"
    if content is not None:
        path.write_bytes(content)

    assert read_snapshot(path, msgspec.json.Decoder(SessionFile)) is None


def test_a_snapshot_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "checkpoints.json"
    path.write_bytes(add_checksum(b'{"v":3,"session_id":"s"}'))

    with pytest.raises(NewerFormat, match="format version 3; this crashproof reads up to version 2"):
        read_snapshot(path, msgspec.json.Decoder(Manifest))


NEWER_LINES = {
    "metrics.jsonl": b'{"v":2,"step":9}',
    "events.jsonl": b'{"event":"paused","timestamp":1.0,"attempt":1,"v":2,"seconds":3.0}',
    "api_recovery.jsonl": b'{"v":2,"prompt_hash":"a"}',
}


@pytest.mark.parametrize("name, line", NEWER_LINES.items(), ids=NEWER_LINES)
def test_a_journal_line_of_a_newer_version_is_refused(two_attempts, name, line):
    with (two_attempts / "progress" / name).open("ab") as file:
        file.write(add_checksum(line))

    with pytest.raises(NewerFormat, match="Upgrade crashproof"):
        RunReader.open(two_attempts).session()


def test_events_of_a_newer_version_are_refused_when_they_are_listed(two_attempts):
    with (two_attempts / "progress" / "events.jsonl").open("ab") as file:
        file.write(add_checksum(b'{"event":"dreamt","timestamp":1.0,"attempt":1,"v":2}'))

    with pytest.raises(NewerFormat):
        list(RunReader.open(two_attempts).events())


def test_a_line_of_this_version_that_is_not_a_record_is_an_error(two_attempts):
    with (two_attempts / "progress" / "metrics.jsonl").open("ab") as file:
        file.write(add_checksum(b'{"v":1,"step":"nine"}'))

    with pytest.raises(UnknownRecord, match="Expected `int`, got `str`"):
        RunReader.open(two_attempts).session()


@pytest.mark.parametrize(
    "first_step, max_lines, expected",
    [
        pytest.param(5, 100, {5, 6, 7, 8}, id="from-a-step-on"),
        pytest.param(3, 100, {3, 4, 5, 6, 7, 8}, id="into-the-first-attempt"),
        pytest.param(0, 100, {1, 2, 3, 4, 5, 6, 7, 8}, id="all"),
        pytest.param(9, 100, set(), id="beyond-the-end"),
        pytest.param(3, 2, {3, 4}, id="the-lowest-where-there-are-too-many"),
    ],
)
def test_the_canonical_losses_are_read_from_the_end(two_attempts, first_step, max_lines, expected):
    folder = RunFolder.under(two_attempts)
    losses = read_losses(folder, first_step=first_step, end=folder.metrics.stat().st_size, max_lines=max_lines)

    assert [(each, 1.0 / each) for each in sorted(expected)] == list(losses)


def test_losses_behind_the_given_end_are_not_read(two_attempts):
    folder = RunFolder.under(two_attempts)
    first_line = folder.metrics.read_bytes().index(b"\n") + 1

    assert [(1, 1.0)] == list(read_losses(folder, first_step=1, end=first_line, max_lines=100))


def test_journals_that_lost_their_beginning_are_still_a_run(two_attempts):
    for name in ("events.jsonl", "session.json"):
        (two_attempts / "progress" / name).unlink()
    session = RunReader.open(two_attempts).session()

    assert ("training_unknown", 8) == (session.session_id, session.steps_completed)


def test_a_session_that_has_not_begun_is_no_run(tmp_path):
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "events.jsonl").touch()

    with pytest.raises(NotARun):
        RunReader.open(tmp_path).session()
