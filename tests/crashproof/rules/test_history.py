from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.rules.history import Rewinds, losses_agree, superseded_from

journals = st.lists(st.integers(min_value=0, max_value=12), max_size=60)


def canonical_indices(steps: list[int]) -> list[int]:
    """The positions of the lines that stand, by the two passes."""
    rewinds = Rewinds()
    for step in steps:
        rewinds.feed(step)
    canonical = rewinds.canonical()
    return [index for index, step in enumerate(steps) if canonical.stands(step)]


def standing_by_the_definition(steps: list[int]) -> list[int]:
    """A line for step s supersedes every earlier line for step s or beyond."""
    standing: list[int] = []
    for index, step in enumerate(steps):
        standing = [earlier for earlier in standing if steps[earlier] < step] + [index]
    return standing


@pytest.mark.parametrize(
    "steps, expected",
    [
        pytest.param([], [], id="nothing-journalled"),
        pytest.param([1, 2, 3], [0, 1, 2], id="one-uninterrupted-attempt"),
        pytest.param([10, 20, 30], [0, 1, 2], id="only-every-tenth-step-is-reported"),
        pytest.param([1, 2, 3, 2, 3, 4], [0, 3, 4, 5], id="resumed-from-a-checkpoint"),
        pytest.param([1, 2, 3, 1, 2], [3, 4], id="begun-anew-and-not-as-far-yet"),
        pytest.param([1, 2, 2], [0, 2], id="a-step-reported-twice"),
        pytest.param([1, 2, 3, 4, 3, 4, 2], [0, 6], id="second-resume-from-an-earlier-checkpoint"),
        pytest.param([1, 2, 3, 2, 3, 4, 4, 5], [0, 3, 4, 6, 7], id="second-resume-from-a-later-checkpoint"),
        pytest.param([5, 1, 9], [1, 2], id="a-gap-behind-the-resume"),
        pytest.param([0, 0, 0], [2], id="step-zero-again-and-again"),
    ],
)
def test_a_line_supersedes_all_earlier_lines_at_or_beyond_its_step(steps, expected):
    assert expected == canonical_indices(steps)


@settings(max_examples=300)
@given(journals)
def test_the_two_passes_agree_with_the_definition(steps):
    assert standing_by_the_definition(steps) == canonical_indices(steps)


@settings(max_examples=100)
@given(journals)
def test_the_canonical_history_has_each_step_once_and_in_order(steps):
    history = [steps[index] for index in canonical_indices(steps)]

    assert sorted(set(history)) == history


@settings(max_examples=100)
@given(journals.filter(bool))
def test_the_newest_line_always_stands(steps):
    assert len(steps) - 1 == canonical_indices(steps)[-1]


@settings(max_examples=100)
@given(journals)
def test_taking_lines_in_one_by_one_ends_in_the_same_history(steps):
    history: list[int] = []
    for step in steps:
        history = [*history[: superseded_from(history, step)], step]

    assert [steps[index] for index in canonical_indices(steps)] == history


def test_a_filter_may_be_made_while_the_journal_still_grows():
    rewinds = Rewinds()
    for step in (1, 2, 3):
        rewinds.feed(step)
    seen_so_far = rewinds.canonical()

    rewinds.feed(2)

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
