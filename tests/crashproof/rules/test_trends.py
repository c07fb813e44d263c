from __future__ import annotations

import math
import random
import sys
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.rules.loss.statistics import slope_of
from crashproof.rules.trends import MOVING_AVERAGE_SPAN, loss_trend, moved_average

SEEDS = range(12)
HUGE = sys.float_info.max


def noisy(curve, *, seed: int, noise: float = 0.05, length: int = 100) -> list[float]:
    chance = random.Random(seed)
    return [curve(place) + chance.gauss(0.0, noise) for place in range(length)]


def verdict_on(losses: list[float], window_size: int = 100) -> str:
    return loss_trend(losses, moving_avg_loss=None, window_size=window_size).verdict


def average_of(losses, start: float | None = None) -> float | None:
    for loss in losses:
        start = moved_average(start, loss)
    return start


def test_the_first_finite_loss_is_the_average():
    assert 4.0 == average_of([math.nan, math.inf, 4.0])


def test_the_average_is_exponential_over_100_losses():
    assert 100 == MOVING_AVERAGE_SPAN
    assert 3.0 + 2.0 / 101 * (2.0 - 3.0) == pytest.approx(average_of([3.0, 2.0]))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_leaves_the_average_alone(poison):
    assert 2.5 == moved_average(2.5, poison)
    assert moved_average(None, poison) is None


@settings(max_examples=300)
@given(st.lists(st.floats(), max_size=60))
def test_nothing_ever_poisons_the_average(losses):
    average = average_of(losses)
    finite = [loss for loss in losses if math.isfinite(loss)]

    assert (average is None) == (not finite)
    if finite:
        slack = 1e-9 * max(abs(loss) for loss in finite) + sys.float_info.min
        assert min(finite) - slack <= average <= max(finite) + slack


def test_without_losses_all_names_are_there_and_nothing_is_known():
    assert {
        "has_data": False,
        "current_loss": None,
        "moving_avg_loss": None,
        "min_loss": None,
        "max_loss": None,
        "window_size": 0,
        "slope_per_update": None,
        "slope_low": None,
        "slope_high": None,
        "noise": None,
        "num_non_finite": 0,
        "is_improving": False,
        "verdict": "unknown",
        "confidence": None,
        "evidence": "is known too few times: a verdict needs 8 finite losses",
        "verdict_window": None,
        "change": None,
        "change_low": None,
        "change_high": None,
    } == msgspec.to_builtins(loss_trend([], moving_avg_loss=None))


@pytest.mark.parametrize("window_size", [0, -3])
def test_an_empty_window_has_no_data(window_size):
    trend = loss_trend([1.0, 2.0], moving_avg_loss=1.5, window_size=window_size)

    assert (False, 0) == (trend.has_data, trend.window_size)


def test_only_the_newest_losses_are_looked_at():
    trend = loss_trend([9.0, 3.0, 2.0, 1.0], moving_avg_loss=2.0, window_size=3)

    expected = {"has_data": True, "window_size": 3, "current_loss": 1.0, "min_loss": 1.0, "max_loss": 3.0}
    assert expected == {name: getattr(trend, name) for name in expected}


def test_two_losses_that_fall_are_improving_though_no_verdict_is_certain():
    trend = loss_trend([2.0, 1.0], moving_avg_loss=1.9)

    assert ("unknown", True) == (trend.verdict, trend.is_improving)


def test_a_straight_line_has_its_own_slope_and_no_noise():
    trend = loss_trend([5.0 - 0.125 * place for place in range(20)], moving_avg_loss=None)

    numbers = [getattr(trend, name) for name in ("slope_per_update", "slope_low", "slope_high", "noise")]
    assert [-0.125, -0.125, -0.125, 0.0] == numbers


def test_one_spike_moves_neither_slope_nor_verdict():
    losses = [5.0 - 0.01 * place for place in range(100)]
    losses[50] = 1e6
    trend = loss_trend(losses, moving_avg_loss=None)

    assert -0.01 == pytest.approx(trend.slope_per_update)
    assert "improving" == trend.verdict


@pytest.mark.parametrize("seed", SEEDS)
def test_the_true_slope_lies_in_its_interval(seed):
    losses = noisy(lambda place: 3.0 - 0.004 * place, seed=seed)
    slope, low, high, _ = slope_of([(float(place), loss) for place, loss in enumerate(losses)])

    assert low <= slope <= high
    assert low - 0.0005 <= -0.004 <= high + 0.0005


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "curve, noise, expected",
    [
        pytest.param(lambda place: 3.0 - 0.005 * place, 0.05, "improving", id="straight-down"),
        pytest.param(lambda place: 1.0 + 3.0 * math.exp(-place / 60), 0.1, "improving", id="exponential-decay"),
        pytest.param(lambda place: 3.0 - 0.02 * place, 0.5, "improving", id="down-in-much-noise"),
        pytest.param(lambda place: 2.0 + 0.02 * place, 0.1, "diverging", id="straight-up"),
        pytest.param(lambda place: 2.0 + math.exp(place / 25), 0.1, "diverging", id="running-away"),
        pytest.param(
            lambda place: 2.0 + (3.0 if place > 60 and place % 5 == 0 else 0.0), 0.01, "unstable", id="spikes"
        ),
        pytest.param(lambda place: math.nan if place == 99 else 2.0, 0.1, "non_finite", id="the-newest-is-nan"),
        pytest.param(lambda place: math.inf if place % 7 == 0 else 2.0, 0.1, "non_finite", id="often-infinite"),
    ],
)
def test_the_verdict_on_a_noisy_curve(curve, noise, expected, seed):
    assert expected == verdict_on(noisy(curve, seed=seed, noise=noise))


def test_noise_that_grows_is_unstable():
    verdicts: Counter[str] = Counter()
    for seed in range(60):
        chance = random.Random(seed)
        verdicts[verdict_on([2.0 + chance.gauss(0.0, 0.01 if place < 50 else 1.0) for place in range(100)])] += 1

    assert verdicts["unstable"] >= 57


def test_noise_is_not_compared_within_a_short_window():
    assert "plateau" == verdict_on([2.0, 2.01, 1.99, 2.0, 2.01, 2.0, 3.0, 1.0, 2.5, 1.5, 2.5, 1.5])


@pytest.mark.parametrize("noise", [1e-6, 0.01, 0.5])
@pytest.mark.parametrize("length", [50, 100, 400])
def test_pure_noise_is_a_plateau_save_for_one_time_in_twenty_and_no_false_alarm(noise, length):
    verdicts = Counter(
        verdict_on(noisy(lambda _: 2.0, seed=seed, noise=noise, length=length), window_size=length)
        for seed in range(60)
    )

    assert verdicts["plateau"] >= 54
    assert 0 == verdicts["diverging"] + verdicts["non_finite"] + verdicts["unknown"]


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([2.0] * 100, id="constant"),
        pytest.param([2.0, 2.0 + 1e-15] * 50, id="rounding"),
        pytest.param([0.0] * 100, id="zero"),
    ],
)
def test_a_change_within_rounding_is_a_plateau(losses):
    assert "plateau" == verdict_on(losses)


@pytest.mark.parametrize(
    "losses, expected",
    [
        pytest.param([1.0] * 7, "unknown", id="seven-losses"),
        pytest.param([1.0] * 8, "plateau", id="eight-losses"),
        pytest.param([math.nan], "non_finite", id="only-nan"),
        pytest.param([math.nan] * 50 + [1.0], "non_finite", id="mostly-nan"),
        pytest.param([math.nan] + [1.0] * 50, "plateau", id="one-nan-long-ago"),
        pytest.param([2.0 - 1e-15 * place for place in range(50)], "plateau", id="a-fall-within-rounding"),
    ],
)
def test_the_verdict_needs_enough_finite_losses(losses, expected):
    assert expected == verdict_on(losses)


def test_losses_that_are_not_finite_are_counted_and_left_out_of_the_numbers():
    trend = loss_trend([3.0, math.nan, 2.0, math.inf, 1.0], moving_avg_loss=2.0)

    expected = {"num_non_finite": 2, "min_loss": 1.0, "max_loss": 3.0, "slope_per_update": -0.5}
    assert expected == {name: getattr(trend, name) for name in expected}


def test_a_long_window_is_judged_like_a_short_one():
    losses = noisy(lambda place: 3.0 - 0.001 * place, seed=1, length=1000)
    trend = loss_trend(losses, moving_avg_loss=None, window_size=1000)

    assert "improving" == trend.verdict
    assert -0.001 == pytest.approx(trend.slope_per_update, rel=0.05)


@settings(max_examples=150)
@given(st.lists(st.floats(), max_size=40), st.integers(-1, 50))
def test_every_list_of_losses_gets_an_answer(losses, window_size):
    trend = loss_trend(losses, moving_avg_loss=None, window_size=window_size)

    assert trend.verdict in {"improving", "plateau", "diverging", "unstable", "non_finite", "unknown"}
    assert trend.verdict != "improving" or trend.is_improving


@settings(max_examples=50)
@given(st.lists(st.floats(0.0, 100.0), min_size=8, max_size=40), st.floats(-1000.0, 1000.0))
def test_the_slope_does_not_depend_on_the_level(losses, level):
    before = loss_trend(losses, moving_avg_loss=None).slope_per_update
    after = loss_trend([loss + level for loss in losses], moving_avg_loss=None).slope_per_update

    assert before == pytest.approx(after, abs=1e-9)
