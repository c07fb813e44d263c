from __future__ import annotations

import math
from itertools import accumulate, islice
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import Evaluation, Timeline
from crashproof.rules.history import (
    Rewinds,
    joined_by_step,
    losses_agree,
    merged_updates,
    standing_evaluations,
    superseded_from,
    with_part,
)


def line(step: int, attempt: int = 1, **more: Any) -> MetricsSnapshot:
    fields = {"loss": 2.0, "loss_components": {}, "learning_rate": 0.1, "samples_processed": 8, "tokens_processed": 9}
    return MetricsSnapshot(step=step, attempt=attempt, timestamp=1000.0, wall_clock_hours=0.0, **(fields | more))


def evaluation(step: int, attempt: int = 1, rewinds: int = 0, **results: float) -> Evaluation:
    return Evaluation(step=step, attempt=attempt, timestamp=1000.0, results=results or {"f1": 0.5}, rewinds=rewinds)


lines = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=60)
"""Steps, and whether the next attempt has begun (0) before each."""


def by_attempts(drawn: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Steps with numbers of attempts, which only grow."""
    attempts = accumulate((has_begun == 0 for _, has_begun in drawn), initial=1)
    return [(step, attempt) for (step, _), attempt in zip(drawn, islice(attempts, 1, None), strict=True)]


journals = lines.map(by_attempts)


def canonical_indices(journal: list[tuple[int, int]]) -> list[int]:
    """The positions of the lines that stand, by the two passes."""
    rewinds = Rewinds()
    for step, attempt in journal:
        rewinds.feed(step, attempt)
    canonical = rewinds.canonical()
    return [index for index, (step, _) in enumerate(journal) if canonical.stands(step)]


def standing_by_the_definition(journal: list[tuple[int, int]]) -> list[int]:
    """A line for step s supersedes every earlier line for step s or beyond, unless it is a part of the one before."""
    standing: list[int] = []
    for index, (step, _) in enumerate(journal):
        is_part = index > 0 and journal[index - 1] == journal[index]
        standing = [each for each in standing if is_part or journal[each][0] < step] + [index]
    return standing


@pytest.mark.parametrize(
    "steps, expected",
    [
        pytest.param([], [], id="nothing-journalled"),
        pytest.param([1, 2, 3], [0, 1, 2], id="one-uninterrupted-attempt"),
        pytest.param([10, 20, 30], [0, 1, 2], id="only-every-tenth-step-is-reported"),
        pytest.param([1, 2, 3, 2, 3, 4], [0, 3, 4, 5], id="resumed-from-a-checkpoint"),
        pytest.param([1, 2, 3, 1, 2], [3, 4], id="begun-anew-and-not-as-far-yet"),
        pytest.param([1, 2, 2], [0, 1, 2], id="a-step-reported-twice"),
        pytest.param([1, 2, 3, 2, 2, 3], [0, 3, 4, 5], id="went-back-to-a-step-in-two-parts"),
        pytest.param([1, 2, 3, 4, 3, 4, 2], [0, 6], id="second-resume-from-an-earlier-checkpoint"),
        pytest.param([1, 2, 3, 2, 3, 4, 3, 5], [0, 3, 6, 7], id="second-resume-from-a-later-checkpoint"),
        pytest.param([5, 1, 9], [1, 2], id="a-gap-behind-the-resume"),
        pytest.param([0, 0, 0], [0, 1, 2], id="step-zero-in-three-parts"),
        pytest.param([0, 1, 0, 1], [2, 3], id="begun-anew-at-step-zero"),
    ],
)
def test_a_line_supersedes_all_earlier_lines_at_or_beyond_its_step(steps, expected):
    assert expected == canonical_indices([(step, 1) for step in steps])


def test_a_step_that_the_next_attempt_reports_again_is_no_part():
    assert [2, 3] == canonical_indices([(5, 1), (5, 1), (5, 2), (5, 2)])


@settings(max_examples=300)
@given(journals)
def test_the_two_passes_agree_with_the_definition(journal):
    assert standing_by_the_definition(journal) == canonical_indices(journal)


@settings(max_examples=100)
@given(journals)
def test_the_canonical_history_has_each_step_once_and_in_order(journal):
    standing = [journal[index] for index in canonical_indices(journal)]
    history = [update.step for update in merged_updates(line(*each) for each in standing)]

    assert sorted(set(history)) == history


@settings(max_examples=100)
@given(journals.filter(bool))
def test_the_newest_line_always_stands(journal):
    assert len(journal) - 1 == canonical_indices(journal)[-1]


@settings(max_examples=100)
@given(journals)
def test_taking_lines_in_one_by_one_ends_in_the_same_history(journal):
    history: list[int] = []
    before = None
    for step, attempt in journal:
        if (step, attempt) != before:
            history = [*history[: superseded_from(history, step)], step]
        before = step, attempt

    assert sorted({journal[index][0] for index in canonical_indices(journal)}) == history


def test_a_filter_may_be_made_while_the_journal_still_grows():
    rewinds = Rewinds()
    for step in (1, 2, 3):
        rewinds.feed(step, 1)
    seen_so_far = rewinds.canonical()

    rewinds.feed(2, 1)

    assert [True, True, True] == [seen_so_far.stands(step) for step in (1, 2, 3)]


@pytest.mark.parametrize(
    "before, now, expected",
    [
        pytest.param(2.5, 2.5, True, id="same"),
        pytest.param(2.5, math.nextafter(2.5, 3), False, id="one-bit-off"),
        pytest.param(math.nan, math.nan, True, id="both-nan"),
        pytest.param(math.nan, 2.5, False, id="nan-before"),
        pytest.param(2.5, math.nan, False, id="nan-now"),
        pytest.param(math.inf, math.inf, True, id="both-infinite"),
        pytest.param(math.inf, -math.inf, False, id="infinities-apart"),
    ],
)
def test_losses_agree_only_bit_for_bit(before, now, expected):
    assert expected is losses_agree(before, now)


def test_of_what_two_parts_name_the_later_value_counts_and_all_else_stays():
    first = line(
        7,
        loss=0.5,
        loss_components={"d_loss": 0.5, "shared": 1.0},
        samples_processed=80,
        throughput_samples_per_sec=3.0,
        throughput_tokens_per_sec=4.0,
    )
    second = line(
        7,
        loss=0.25,
        loss_components={"g_loss": 0.25, "shared": 2.0},
        learning_rate=0.2,
        samples_processed=0,
        throughput_samples_per_sec=5.0,
    )

    merged = with_part(first, second)

    assert {"d_loss": 0.5, "shared": 2.0, "g_loss": 0.25} == merged.loss_components
    assert (0.25, 0.2, 80) == (merged.loss, merged.learning_rate, merged.samples_processed)
    assert (5.0, 4.0) == (merged.throughput_samples_per_sec, merged.throughput_tokens_per_sec)
    assert msgspec.UNSET is merged.nonfinite


def test_what_is_not_finite_in_a_merged_update_is_what_is_left_of_it():
    first = line(7, loss=math.nan, loss_components={"kd": math.inf}, nonfinite={"loss": "NaN"})

    assert {"loss_components.kd": "Infinity"} == with_part(first, line(7, loss=1.0)).nonfinite
    assert msgspec.UNSET is with_part(first, line(7, loss=1.0, loss_components={"kd": 1.0})).nonfinite


@pytest.mark.parametrize(
    "evaluations, timelines, expected",
    [
        pytest.param([evaluation(0)], [Timeline(1, 0, 0)], [0], id="before-training"),
        pytest.param([evaluation(40)], [Timeline(1, 0, 1), Timeline(2, 0, 41)], [40], id="at-the-resumed-step"),
        pytest.param([evaluation(41)], [Timeline(1, 0, 1), Timeline(2, 0, 41)], [], id="recomputed"),
        pytest.param([evaluation(60)], [Timeline(2, 0, 41)], [], id="not-reached-again-yet"),
        pytest.param([evaluation(60, 2)], [Timeline(2, 0, 41)], [60], id="measured-again"),
        pytest.param([evaluation(60), evaluation(60, 1, 1)], [Timeline(1, 1, 41)], [60], id="went-back-itself"),
        pytest.param([evaluation(60), evaluation(40)], [], [40, 60], id="came-late"),
    ],
)
def test_an_evaluation_stands_until_its_step_is_computed_again(evaluations, timelines, expected):
    assert expected == [each.step for each in standing_evaluations(evaluations, timelines)]


def test_results_of_one_step_are_joined_and_the_newest_of_a_name_counts():
    found = standing_evaluations([evaluation(9, wiki=1.0, news=2.0), evaluation(9, news=math.nan)], [])

    assert [1.0] == [each.results["wiki"] for each in found]
    assert [{"results.news": "NaN"}] == [each.nonfinite for each in found]


@pytest.mark.parametrize(
    "steps, evaluated, expected",
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param([1, 2], [], [(1, None), (2, None)], id="no-evaluation"),
        pytest.param([], [0, 5], [(None, 0), (None, 5)], id="no-update"),
        pytest.param([1, 3], [0, 2, 3, 9], [(None, 0), (1, None), (None, 2), (3, 3), (None, 9)], id="both"),
    ],
)
def test_updates_and_evaluations_are_joined_by_step(steps, evaluated, expected):
    found = joined_by_step(steps, map(evaluation, evaluated), step_of=lambda step: step)

    assert expected == [(update, each if each is None else each.step) for update, each in found]
