from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from crashproof.errors import ConfigError
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import Timeline, TrainingSession
from crashproof.rules.retention import (
    KeepBest,
    KeepEvery,
    KeepLatest,
    KeepMilestones,
    RetentionRule,
    stale_checkpoints,
)


def checkpoint(
    step: int, loss: float | None = None, *, tags: tuple[str, ...] = (), **more: Any
) -> CheckpointMetadata:
    metrics = None
    if loss is not None:
        metrics = MetricsSnapshot(
            step=step,
            timestamp=1000.0,
            wall_clock_hours=0.0,
            loss=loss,
            loss_components={"kd": 10.0 - loss, "f1": 0.0},
            learning_rate=0.1,
            samples_processed=step,
            tokens_processed=step,
        )
    return CheckpointMetadata(
        checkpoint_step=step,
        checkpoint_path=more.pop("path", f"checkpoint_{step}.pt"),
        created_at=1000.0,
        metrics=metrics,
        dataset_position=step,
        recovery_tags=["periodic", *tags],
        attempt=more.pop("attempt", 1),
        **more,
    )


def session(*known: CheckpointMetadata, **more: Any) -> TrainingSession:
    return TrainingSession(
        session_id="training_1",
        start_time=0.0,
        config={},
        config_hash="",
        total_steps_target=100,
        checkpoints={each.checkpoint_step: each for each in known},
        **more,
    )


LOSSES = {10: 4.0, 20: 2.0, 30: 3.0, 40: math.nan, 50: 2.0, 60: None}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (KeepLatest(2), "KeepLatest(count=2)"),
        (KeepBest(2, "kd"), "KeepBest(count=2, by='kd', higher_is_better=False)"),
        (KeepEvery(steps=4), "KeepEvery(steps=4)"),
        (KeepMilestones([4]), "KeepMilestones(steps=frozenset({4}))"),
    ],
)
def test_a_rule_is_a_value(rule: RetentionRule, text: str) -> None:
    copy = pickle.loads(pickle.dumps(rule))

    assert (rule, hash(rule)) == (copy, hash(copy))
    assert text == repr(rule)
    with pytest.raises(AttributeError):
        rule.count = 3  # type: ignore[attr-defined]


def test_a_rule_of_your_own_has_to_choose() -> None:
    with pytest.raises(NotImplementedError):
        RetentionRule().choose([])


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        pytest.param(KeepLatest(2), {50, 60}, id="the latest two"),
        pytest.param(KeepLatest(9), set(LOSSES), id="more than there are"),
        pytest.param(KeepBest(1), {20}, id="the best, of equal ones the earlier"),
        pytest.param(KeepBest(3), {20, 50, 30}, id="the best three"),
        pytest.param(KeepBest(9), {10, 20, 30, 50}, id="no loss and NaN are never best"),
        pytest.param(KeepBest(1, higher_is_better=True), {10}, id="the highest"),
        pytest.param(KeepBest(1, by="kd"), {10}, id="the best by a component"),
        pytest.param(KeepBest(2, by="missing"), set(), id="by a number that nobody reported"),
        pytest.param(KeepEvery(20), {20, 40, 60}, id="every twenty steps"),
        pytest.param(KeepMilestones([10, 30, 35]), {10, 30}, id="milestones"),
        pytest.param(KeepMilestones(step for step in (10, 50)), {10, 50}, id="milestones that come one by one"),
        pytest.param(KeepLatest(1) | KeepBest(1), {60, 20}, id="either of two"),
        pytest.param(KeepLatest(1) | KeepBest(1) | KeepEvery(30), {60, 20, 30}, id="any of three"),
    ],
)
def test_a_rule_chooses_what_stays(rule: RetentionRule, kept: set[int]) -> None:
    known = [checkpoint(step, loss) for step, loss in LOSSES.items()]

    assert kept == rule.choose(known) == rule.choose(iter(reversed(known)))


def test_a_result_of_the_evaluation_comes_before_a_component_of_the_same_name() -> None:
    known = [checkpoint(step, 1.0, evaluation={"f1": score}) for step, score in {1: 0.5, 2: 0.75, 3: 0.25}.items()]

    assert {2} == KeepBest(1, by="f1", higher_is_better=True).choose(known)


@pytest.mark.parametrize("rule", [KeepLatest, KeepBest, KeepEvery])
def test_a_rule_needs_a_number_of_at_least_one(rule: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{rule.__name__} needs a number of at least 1, got 0"):
        rule(0)


def steps(checkpoints: list[CheckpointMetadata]) -> list[int]:
    return [each.checkpoint_step for each in checkpoints]


def test_what_a_rule_does_not_keep_is_stale_the_oldest_first() -> None:
    known = session(checkpoint(30), checkpoint(10), checkpoint(40), checkpoint(20))

    assert [10, 20] == steps(stale_checkpoints(known, KeepLatest(2)))


def test_the_newest_is_never_stale() -> None:
    assert [10] == steps(stale_checkpoints(session(checkpoint(10), checkpoint(20)), KeepMilestones([5])))


def test_nothing_is_stale_where_nothing_was_recorded() -> None:
    assert [] == stale_checkpoints(session(), KeepLatest(1))


def test_those_beside_others_of_their_step_go_with_them() -> None:
    known = session(checkpoint(10), checkpoint(20), checkpoints_beside=[checkpoint(10, path="best.pt")])

    assert ["checkpoint_10.pt", "best.pt"] == [
        each.checkpoint_path for each in stale_checkpoints(known, KeepLatest(1))
    ]


@pytest.mark.parametrize(
    ("newest", "stale"),
    [
        pytest.param(20, [10], id="those ahead stay"),
        pytest.param(40, [10, 20, 30], id="they go once training has come as far"),
    ],
)
def test_those_of_a_timeline_that_was_left_stay_until_training_has_come_as_far(newest: int, stale: list[int]) -> None:
    recorded = [checkpoint(step) for step in (10, 20, 30)]
    if newest > 30:
        recorded.append(checkpoint(newest, attempt=2))
    known = session(*recorded, timelines=[Timeline(2, 0, 21)])

    assert stale == steps(stale_checkpoints(known, KeepLatest(1)))


def test_a_timeline_that_was_left_is_not_asked_about() -> None:
    known = session(checkpoint(10), checkpoint(20), checkpoint(30), timelines=[Timeline(2, 0, 21)])

    assert [] == stale_checkpoints(known, KeepLatest(2))


def test_where_all_belong_to_a_timeline_that_was_left_nothing_is_stale() -> None:
    known = session(checkpoint(10), checkpoint(20), timelines=[Timeline(2, 0, 1)])

    assert [] == stale_checkpoints(known, KeepLatest(1))


def test_adopted_ones_are_never_stale() -> None:
    known = session(checkpoint(10, tags=("adopted",)), checkpoint(20), checkpoint(30))

    assert [20] == steps(stale_checkpoints(known, KeepLatest(1)))
