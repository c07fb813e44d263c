from __future__ import annotations

import os
import zipfile

import pytest

from crashproof import RunReader, TrackerSettings
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NewerFormat, NotARun, StorageError
from crashproof.records.events import CheckpointSetAside, DamageFound
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.tracking.repair import repair_run

SNAPSHOTS = ["session.json", "progress.json", "checkpoints.json"]


@pytest.fixture
def ended_run(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker()
    for step in range(1, 11):
        update(tracker, step)
        if step % 5 == 0:
            save_checkpoint(tracker, step)
    tracker.close()
    return run_dir


def contents(run_dir):
    return {
        path: path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name != "writer.lock"
    }


def test_an_intact_run_needs_no_repair(ended_run, clock):
    before = RunReader.open(ended_run).session()

    assert [] == repair_run(RunFolder.under(ended_run), clock=clock)
    assert before == RunReader.open(ended_run).session()


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_snapshot_is_rebuilt_as_it_was(ended_run, clock, read_json, name):
    path = ended_run / "progress" / name
    before = read_json(path)
    path.write_bytes(b"garbage")
    repair_run(RunFolder.under(ended_run), clock=clock)

    assert before == read_json(path)


def test_damage_in_journals_is_quarantined_and_reported(ended_run, clock):
    metrics = ended_run / "progress" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"step":3,', b'"step":4,')[:-7])
    done = repair_run(RunFolder.under(ended_run), clock=clock)

    assert ["its checksum does not match", "the last write was cut off"] == [
        line.partition(": ")[2].partition(";")[0] for line in done
    ]
    assert [1, 2, *range(4, 10)] == [line.step for line in RunReader.open(ended_run).history()]
    assert 2 == len([event for event in RunReader.open(ended_run).events() if isinstance(event, DamageFound)])
    assert 2 == len((ended_run / "progress" / "set_aside" / "metrics.jsonl").read_bytes().splitlines())
    assert [] == RunReader.open(ended_run).problems()


def test_a_repair_that_was_done_needs_no_other(ended_run, clock):
    metrics = ended_run / "progress" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-7])
    repair_run(RunFolder.under(ended_run), clock=clock)

    assert [] == repair_run(RunFolder.under(ended_run), clock=clock)


def test_an_altered_checkpoint_is_quarantined_and_a_missing_one_may_come_back(ended_run, clock):
    (ended_run / "checkpoint_5.pt").unlink()
    (ended_run / "checkpoint_10.pt").write_bytes(b"torn")
    done = repair_run(RunFolder.under(ended_run), clock=clock)

    assert ["checkpoint_10.pt: it has 4 bytes instead of 18; moved to progress/set_aside/checkpoint_10.pt"] == done
    assert [10] == [
        event.step for event in RunReader.open(ended_run).events() if isinstance(event, CheckpointSetAside)
    ]
    assert [5] == list(RunReader.open(ended_run).session().checkpoints)
    assert b"torn" == (ended_run / "progress" / "set_aside" / "checkpoint_10.pt").read_bytes()


@pytest.mark.parametrize(
    "is_corrupt, expected",
    [
        pytest.param(False, [], id="whole"),
        pytest.param(True, ["data.pkl in its archive is damaged"], id="corrupt"),
    ],
)
def test_an_archive_whose_digest_was_cut_off_is_held_against_itself(
    open_tracker, run_dir, left_by_a_kill, clock, is_corrupt, expected
):
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, large_checkpoint_bytes=1))
    path = run_dir / "checkpoint_5.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 50)
    tracker.record_checkpoint(5, path, 40)
    left = left_by_a_kill(run_dir)
    if is_corrupt:
        content = (left / path.name).read_bytes()
        (left / path.name).write_bytes(content.replace(b"weights", b"weightS", 1))
    done = repair_run(RunFolder.under(left), clock=clock)

    assert expected == [line.partition(": ")[2].partition(";")[0] for line in done]
    assert is_corrupt is not (left / path.name).exists()


def test_a_checkpoint_in_a_foreign_folder_stays_where_it_is(open_tracker, save_checkpoint, run_dir, tmp_path, clock):
    tracker = open_tracker()
    outside = save_checkpoint(tracker, 5, path=tmp_path / "outside.pt")
    tracker.close()
    outside.write_bytes(b"torn")

    assert [] == repair_run(RunFolder.under(run_dir), clock=clock)
    assert b"torn" == outside.read_bytes()


def test_a_run_of_a_newer_version_is_left_alone(ended_run, clock):
    with (ended_run / "progress" / "metrics.jsonl").open("ab") as file:
        file.write(b"garbage\n" + add_checksum(b'{"v":2,"step":11}'))
    before = contents(ended_run)

    with pytest.raises(NewerFormat):
        repair_run(RunFolder.under(ended_run), clock=clock)
    assert before == contents(ended_run)


def test_what_is_no_run_cannot_be_repaired(tmp_path, clock):
    (tmp_path / "progress").mkdir()

    with pytest.raises(NotARun):
        repair_run(RunFolder.under(tmp_path), clock=clock)


def test_a_repaired_run_continues(open_tracker, update, ended_run, clock):
    metrics = ended_run / "progress" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-7])
    repair_run(RunFolder.under(ended_run), clock=clock)
    tracker = open_tracker()
    update(tracker, 10)

    assert (10, 1) == (tracker.session.steps_completed, tracker.session.damage_found)
    assert [] == RunReader.open(ended_run).problems()


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl"])
def test_a_pipe_for_a_journal_is_refused_and_nothing_is_changed(ended_run, clock, name):
    path = RunFolder.under(ended_run).progress / name
    path.unlink()
    os.mkfifo(path)
    before = contents(ended_run)

    with pytest.raises(StorageError, match="a named pipe"):
        repair_run(RunFolder.under(ended_run), clock=clock)

    assert before == contents(ended_run)


def test_a_sparse_journal_is_kept_under_its_own_name_in_quarantine(ended_run, clock):
    folder = RunFolder.under(ended_run)
    num_bytes = folder.metrics.stat().st_size
    with folder.metrics.open("ab") as file:
        file.truncate(1 << 40)

    (said,) = repair_run(folder, clock=clock)

    assert "kept in progress/set_aside/metrics.jsonl" in said
    assert num_bytes == folder.metrics.stat().st_size
    assert (folder.quarantine / "metrics.jsonl").stat().st_blocks < 10_000
    assert 10 == RunReader.open(ended_run).session().steps_completed
