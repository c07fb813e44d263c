from __future__ import annotations

import json

import pytest

from crashproof import TrackerSettings
from crashproof.rules.retention import KeepLatest

LONG_AGO = 1_000_000_000.5


def states(crashproof, run, *options):
    rows = json.loads(crashproof("checkpoints", run, "--json", *options).output)["checkpoints"]
    return {row["path"]: row["state"] for row in rows}


@pytest.fixture
def run(open_tracker, update, save_checkpoint, run_dir):
    """Checkpoints at 2, 4 and 6; the one at 4 has other bytes by now, as many as before."""
    tracker = open_tracker()
    for step in range(1, 7):
        update(tracker, step)
        if step % 2 == 0:
            path = save_checkpoint(tracker, step, written_at=LONG_AGO)
            if step == 4:
                path.write_bytes(path.read_bytes()[::-1])
    tracker.record_evaluation(6, {"accuracy": 0.75})
    tracker.close()
    return run_dir


def test_nothing_is_read_that_is_unchanged_since_it_was_verified(crashproof, run):
    assert {"checkpoint_2.pt": "verified", "checkpoint_4.pt": "recorded", "checkpoint_6.pt": "verified"} == states(
        crashproof, run
    )


def test_the_one_that_a_restart_resumes_is_read_if_it_may_have_changed(crashproof, run):
    for step in (2, 6):
        (run / f"checkpoint_{step}.pt").touch()

    assert {"checkpoint_2.pt": "recorded", "checkpoint_4.pt": "recorded", "checkpoint_6.pt": "intact"} == states(
        crashproof, run
    )


def test_verify_reads_all(crashproof, run):
    assert {"checkpoint_2.pt": "intact", "checkpoint_4.pt": "damaged", "checkpoint_6.pt": "intact"} == states(
        crashproof, run, "--verify"
    )


def test_what_is_missing_or_of_another_size_is_seen_without_reading(crashproof, run):
    (run / "checkpoint_2.pt").unlink()
    (run / "checkpoint_4.pt").write_bytes(b"x")

    assert {"checkpoint_2.pt": "missing", "checkpoint_4.pt": "damaged", "checkpoint_6.pt": "verified"} == states(
        crashproof, run
    )


def test_a_table_for_people(crashproof, run):
    said = crashproof("checkpoints", run)

    assert max(map(len, said.lines)) <= 80
    assert ["path", "step", "size", "age", "loss", "attempt", "state", "tags"] == said.lines[0].split()
    assert "verified *" in said.lines[3]
    assert "accuracy 0.75" in said.output
    assert said.lines[-1] == "A restart would resume at step 6 from checkpoint_6.pt (*)."


def test_removed_and_superseded_checkpoints_are_listed(crashproof, open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=KeepLatest(2)))
    for step in (1, 2, 3, 4):
        update(tracker, step)
        save_checkpoint(tracker, step)
    tracker.close()
    tracker = open_tracker()
    update(tracker, 4)
    tracker.close()

    answer = json.loads(crashproof("checkpoints", run_dir, "--json").output)
    by_path = {row["path"]: row for row in answer["checkpoints"]}

    assert ["removed", "removed"] == [by_path[f"checkpoint_{step}.pt"]["state"] for step in (1, 2)]
    assert by_path["checkpoint_4.pt"]["is_superseded"]
    assert by_path["checkpoint_3.pt"]["is_resumed"]


def test_one_without_a_digest_is_unverified(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.record_checkpoint(1, "s3://bucket/checkpoint_1", 8)
    tracker.close()

    assert {"s3://bucket/checkpoint_1": "unverified"} == states(crashproof, run_dir)
    assert {"s3://bucket/checkpoint_1": "unverified"} == states(crashproof, run_dir, "--verify")


def test_no_checkpoints_and_none_that_can_be_used(crashproof, train, run, tmp_path):
    new = train(tmp_path / "new", range(1, 3))
    for path in run.glob("checkpoint_*"):
        path.unlink()

    assert "a restart would begin at step 0: no checkpoint was recorded" in crashproof("checkpoints", new).output
    assert "A restart would end with an error" in crashproof("checkpoints", run).output
