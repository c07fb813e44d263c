from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crashproof.errors import NotARun
from crashproof.exporters.exporter import Point, RunFacts, Sent
from crashproof.exporters.names import TrackerNames
from crashproof.exporters.replay import following, replay
from crashproof.rules.naming.trackers import TENSORBOARD


class Remembering:
    """A tracker that keeps what it is given and takes nothing back but all."""

    takes_late_points = True

    def __init__(self) -> None:
        self.names = TrackerNames(TENSORBOARD)
        self.points: list[Point] = []
        self.sent = Sent()
        self.num_forgotten = 0
        self.fails_at: int | None = None
        self.facts: RunFacts | None = None
        self.num_open = 0

    def open(self, run: RunFacts) -> Sent:
        self.facts = run
        self.num_open += 1
        return self.sent

    def forget(self) -> None:
        self.num_forgotten += 1
        self.points, self.sent = [], Sent()

    def add(self, points: Sequence[Point], sent: Sent) -> None:
        if self.fails_at is not None and points[-1].step >= self.fails_at:
            raise ConnectionError("the tracker is away, key sk-abcdefghij0123456789")
        self.points += points
        self.sent = sent

    def close(self) -> None:
        self.num_open -= 1

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]


@pytest.fixture
def exporter() -> Remembering:
    return Remembering()


def test_the_whole_history_is_replayed_and_a_second_time_nothing(train, exporter):
    run = train((1, 2500))

    first, second = replay(run, exporter), replay(run, exporter)

    assert list(range(1, 2501)) == exporter.steps
    assert (2500, 0, 2500) == (first.num_added, second.num_added, second.last_step)
    assert 0 == exporter.num_open
    assert "run" == exporter.facts.name


@pytest.mark.parametrize(
    "attempts",
    [
        pytest.param([(1, 50), (31, 80)], id="resumed"),
        pytest.param([(1, 50), (1, 30)], id="from-the-beginning"),
        pytest.param([(1, 50), (51, 60)], id="nothing-repeated"),
        pytest.param([(1, 50), (31, 45), (41, 60), (11, 70)], id="often"),
    ],
)
def test_a_replay_after_every_attempt_leaves_each_step_once(train, exporter, canonical, attempts):
    for attempt in attempts:
        run = train(attempt)
        replay(run, exporter)
        assert [step for step, _ in canonical(run)] == exporter.steps

    assert 0 == replay(run, exporter).num_added


def test_only_a_run_that_went_back_behind_what_was_sent_begins_anew(train, exporter):
    run = train((1, 50))
    replay(run, exporter)
    train((51, 60))
    went_on = replay(run, exporter)
    train((41, 70))
    went_back = replay(run, exporter)

    assert (False, 10) == (went_on.has_begun_anew, went_on.num_added)
    assert (True, 70, 1) == (went_back.has_begun_anew, went_back.num_added, exporter.num_forgotten)


def test_beside_a_live_run_what_a_restart_recomputes_is_held_back(train, exporter, canonical):
    run = train((1, 50), saves=(20, 40))
    first = replay(run, exporter, holds_back=True)
    train((41, 90), saves=(60, 80))
    second = replay(run, exporter, holds_back=True)

    assert (40, 80) == (first.last_step, second.last_step)
    assert 0 == exporter.num_forgotten
    assert list(range(1, 81)) == exporter.steps


def test_when_it_is_complete_nothing_is_held_back(train, exporter):
    run = train((1, 50), total_steps=50, saves=(20,))

    assert 50 == replay(run, exporter, holds_back=True).last_step


def test_before_the_first_checkpoint_everything_is_held_back(train, exporter):
    replayed = replay(train((1, 50)), exporter, holds_back=True)

    assert (0, None) == (replayed.num_added, replayed.last_step)


def test_a_repaired_journal_is_replayed_again(train, exporter, canonical):
    run = train((1, 50))
    replay(run, exporter)
    metrics = run / "progress" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*lines[:20], *lines[21:]]))

    assert replay(run, exporter).has_begun_anew
    assert [step for step, _ in canonical(run)] == exporter.steps
    assert 49 == len(exporter.steps)


def test_what_a_killed_replay_had_sent_beyond_its_note_is_forgotten_where_it_was_superseded(train, exporter):
    run = train((1, 50))
    replay(run, exporter)
    train((51, 60))
    exporter.sent = Sent(mark=exporter.sent.mark, last_step=exporter.sent.last_step, reached=60)
    train((56, 70))

    assert replay(run, exporter).has_begun_anew


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 25), st.booleans()), min_size=1, max_size=6))
def test_whenever_it_is_replayed_the_end_is_the_canonical_history(
    tmp_path_factory, open_tracker, update, canonical, attempts
):
    run = tmp_path_factory.mktemp("run")
    exporter = Remembering()
    first = 1
    for length, back, is_replayed in attempts:
        tracker = open_tracker(output_dir=run)
        for step in range(first, first + length):
            update(tracker, step)
        first = max(1, first + length - back)
        if is_replayed:
            replay(run, exporter)
    replay(run, exporter)

    assert [step for step, _ in canonical(run)] == exporter.steps


def test_a_failing_tracker_is_logged_once_and_caught_up_later(train, exporter, caplog):
    run = train((1, 30))
    exporter.fails_at = 1
    num_tried = threading.Semaphore(0)

    def fill() -> None:
        num_tried.release()
        replay(run, exporter)

    with following(fill, name="the tracker", seconds_between=0.01):
        for _ in range(5):
            num_tried.acquire()
        exporter.fails_at = None

    assert list(range(1, 31)) == exporter.steps
    warnings = [message for message in caplog.messages if "failed" in message]
    assert 1 == len(warnings)
    assert "ConnectionError: the tracker is away" in warnings[0]
    assert "sk-abc" not in warnings[0]
    assert "Export to the tracker works again." in caplog.messages


def test_the_exporter_is_closed_also_where_it_fails(train, exporter):
    exporter.fails_at = 1

    with pytest.raises(ConnectionError):
        replay(train((1, 5)), exporter)

    assert 0 == exporter.num_open


def test_a_run_without_an_update_adds_nothing(open_tracker, run_dir, exporter):
    open_tracker()

    assert (0, None) == (replay(run_dir, exporter).num_added, replay(run_dir, exporter).last_step)


def test_a_folder_without_a_run_is_refused(tmp_path, exporter):
    with pytest.raises(NotARun):
        replay(tmp_path, exporter)
