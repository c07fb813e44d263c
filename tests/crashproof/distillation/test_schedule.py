import math
from itertools import pairwise

import pytest

from crashproof.distillation.schedule import learning_rate_at


def rate(step: int, *, warmup_steps: int = 10, schedule_steps: int = 110, final_fraction: float = 0.1) -> float:
    return learning_rate_at(
        step,
        peak=2.0,
        warmup_steps=warmup_steps,
        schedule_steps=schedule_steps,
        final_fraction=final_fraction,
    )


@pytest.mark.parametrize(
    "step, expected",
    [(1, 0.2), (5, 1.0), (10, 2.0), (60, 1.1), (110, 0.2), (111, 0.2), (10_000, 0.2)],
    ids=["first", "half warm", "warm", "halfway down", "at the end", "behind it", "far behind it"],
)
def test_it_warms_up_falls_and_stays(step: int, expected: float) -> None:
    assert math.isclose(expected, rate(step), rel_tol=1e-12)


def test_without_warm_up_it_starts_near_the_peak() -> None:
    assert 1.99 < rate(1, warmup_steps=0) < 2.0


def test_it_never_jumps() -> None:
    rates = [rate(step) for step in range(1, 120)]

    assert max(abs(after - before) for before, after in pairwise(rates)) <= 0.2 + 1e-12


@pytest.mark.parametrize("warmup_steps, schedule_steps", [(10, 3), (3, 3), (0, 1)])
def test_a_schedule_shorter_than_its_warm_up_still_ends(warmup_steps: int, schedule_steps: int) -> None:
    rates = [rate(step, warmup_steps=warmup_steps, schedule_steps=schedule_steps) for step in range(1, 30)]

    assert all(0 < each <= 2.0 for each in rates)
    assert math.isclose(0.2, rates[-1])


def test_the_learning_rate_may_fall_to_nothing() -> None:
    assert math.isclose(0.0, rate(110, final_fraction=0.0), abs_tol=1e-12)
