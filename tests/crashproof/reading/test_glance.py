"""How a run stands, from its small snapshot where that is enough."""

from __future__ import annotations

import json

import msgspec
import pytest

from crashproof import TrackerSettings
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NotARun
from crashproof.reading.glance import glance, glance_at_snapshot
from crashproof.reading.run_reader import RunReader
from crashproof.records.lines.codec import encode
from crashproof.records.states import HealthState, RunStatus


@pytest.fixture
def run(open_tracker, update, save_checkpoint, run_dir, clock):
    """Closed at step 300 of 1,000, with a result on held-out data and a checkpoint."""
    tracker = open_tracker(total_steps=1000)
    for step in range(1, 301):
        clock.advance(seconds=1)
        update(tracker, step, loss=float("nan") if step == 300 else 3.0 - step / 500)
    save_checkpoint(tracker, 300)
    tracker.record_evaluation(300, {"perplexity": float("inf")})
    tracker.close()
    clock.advance(seconds=1000)
    return RunFolder.under(run_dir)


def fields(summary) -> dict:
    return msgspec.to_builtins(summary)


def test_a_closed_run_stands_as_its_journals_say(run, clock):
    found = glance_at_snapshot(run, now=clock.now())

    read = RunReader(run).progress(now=clock.now())
    assert found is not None
    assert read.estimated_finish_time == pytest.approx(found.summary.estimated_finish_time)
    found.summary.estimated_finish_time = read.estimated_finish_time
    # NaN equals nothing.
    assert repr(fields(read)) == repr(fields(found.summary))
    assert 1000 == pytest.approx(clock.now() - found.last_seen)
    assert 0 == found.num_damaged


def test_whatever_was_written_since_is_read(run, clock):
    with run.metrics.open("ab") as file:
        file.write(b'{"torn')

    assert glance_at_snapshot(run, now=clock.now()) is None
    found = glance(run, now=clock.now())
    assert (300, 1) == (found.summary.steps_completed, found.num_damaged)


def test_a_journal_that_is_gone_is_noticed(run, clock):
    run.metrics.unlink()

    assert glance_at_snapshot(run, now=clock.now()) is None


def test_an_empty_journal_that_is_gone_had_nothing_to_say(run, clock):
    run.requests.unlink()

    assert glance_at_snapshot(run, now=clock.now()) is not None


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), id="torn"),
        pytest.param(lambda path: path.write_bytes(without(path, "journals")), id="without-lengths"),
        pytest.param(lambda path: path.write_bytes(without(path, "last_seen")), id="without-a-moment"),
        pytest.param(lambda path: path.write_bytes(without(path, "rank_times")), id="of-an-earlier-version"),
    ],
)
def test_without_a_snapshot_that_says_enough_the_journals_are_read(run, clock, harm):
    harm(run.summary)

    assert glance_at_snapshot(run, now=clock.now()) is None
    assert 300 == glance(run, now=clock.now()).summary.steps_completed


def without(path, name: str) -> bytes:
    content = json.loads(path.read_bytes())
    return encode({key: value for key, value in content.items() if key not in (name, "crc")})


def test_a_killed_run_has_crashed(run, open_tracker, update, left_by_a_kill, clock):
    tracker = open_tracker(total_steps=1000)
    update(tracker, 301)
    killed = RunFolder.under(left_by_a_kill(run.root))

    assert glance_at_snapshot(killed, now=clock.now()) is None
    assert HealthState.CRASHED == glance(killed, now=clock.now()).summary.health


def test_a_live_run_is_read_as_it_is_now(run, open_tracker, update, clock):
    tracker = open_tracker(total_steps=1000)
    update(tracker, 301)

    found = glance(run, now=clock.now())

    assert (RunStatus.RUNNING, 301) == (found.summary.status, found.summary.steps_completed)


def test_without_the_session_the_journals_are_read_and_their_damage_is_found(run, clock):
    run.session.unlink()
    run.metrics.write_bytes(run.metrics.read_bytes().replace(b'"step":3,', b'"step":5,'))

    assert 1 == glance(run, now=clock.now()).num_damaged


def test_money_that_was_reserved_is_in_doubt_once_the_process_is_gone(open_tracker, update, run_dir, clock):
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False))
    update(tracker, 1)
    tracker.close()
    folder = RunFolder.under(run_dir)
    content = json.loads(folder.summary.read_bytes()) | {"api_cost_reserved": 0.5}
    del content["crc"]
    folder.summary.write_bytes(encode(content))

    assert glance_at_snapshot(folder, now=clock.now()) is None


def test_a_folder_without_a_session_is_no_run(tmp_path, clock):
    with pytest.raises(NotARun):
        glance(RunFolder.under(tmp_path), now=clock.now())
