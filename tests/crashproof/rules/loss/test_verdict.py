from __future__ import annotations

import math
import random

import pytest

from crashproof.rules.loss.verdict import judge
from crashproof.rules.loss.windows import LossHistory


def verdict_on(losses: list[float], progress: float | None = None) -> str:
    return judge(LossHistory(losses), progress=progress).verdict


def noisy(first: float, last: float, noise: float, count: int = 800, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    return [first + (last - first) * step / count + chance.gauss(0.0, noise) for step in range(count)]


def test_without_losses_nothing_is_known():
    assert "unknown" == verdict_on([])
    assert judge(LossHistory([])).confidence is None


@pytest.mark.parametrize("first, last, expected", [(1.0, 3.0, "diverging"), (3.0, 1.0, "improving")])
def test_what_follows_a_stretch_without_finite_losses_is_judged_by_itself(first, last, expected):
    assert expected == verdict_on([math.nan] * 450 + noisy(first, last, 0.05, 400))


def test_a_noisy_fall_or_rise_behind_a_stretch_without_finite_losses_has_no_level_to_pass():
    assert "improving" == verdict_on([math.nan] * 600 + noisy(1.0, 0.5, 0.3, 200, seed=0))
    assert "diverging" == verdict_on([math.nan] * 100 + noisy(1.0, 1.4, 0.12, 100, seed=0))


def test_a_certain_rise_that_is_tiny_is_a_plateau():
    assert "plateau" == verdict_on(noisy(100.0, 100.03, 0.01))


def test_a_small_rise_far_above_its_noise_is_a_divergence():
    assert "diverging" == verdict_on(noisy(100.0, 101.0, 0.01))


def test_noise_that_grows_around_zero_is_unstable():
    assert "unstable" == verdict_on(noisy(0.0, 0.0, 0.01) + noisy(0.0, 0.0, 0.4, 200))


@pytest.mark.parametrize("last, expected", [(3.0, "plateau"), (6.0, "diverging")])
def test_during_a_warm_up_only_a_loss_that_doubles_diverges(last, expected):
    losses = noisy(2.3, last, 0.05)

    assert (expected, "diverging") == (verdict_on(losses, 0.05), verdict_on(losses, 0.5))


def test_a_jump_that_stays_is_a_divergence_and_one_that_comes_back_is_none():
    before = noisy(2.0, 2.0, 0.05)

    assert "diverging" == verdict_on(before + noisy(10.0, 10.0, 0.05, 100))
    assert "diverging" != verdict_on(before + noisy(10.0, 4.0, 0.05, 100))
