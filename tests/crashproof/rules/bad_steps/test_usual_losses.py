"""What is usual for a loss: spikes are found, and noise, a warm-up or a step of the learning rate is none.

`CRASHPROOF_MANY_RUNS=5 pytest -s tests/crashproof/rules/bad_steps/test_usual_losses.py` looks at that many runs of
each shape, and prints how many steps were found bad.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence

import pytest
from loss_curves import SHAPES, Shape

from crashproof.records.bad_steps import DataWindow
from crashproof.rules.bad_steps.finding import BadStepFinding, judge_step
from crashproof.rules.bad_steps.usual_losses import FEWEST_LOSSES, LAG_STEPS, UsualLosses, cause_of

FLAT = [2.0, 2.1, 1.9, 2.05, 1.95] * 8
HAS_SPIKES = {"spikes that recover", "tall spikes that recover slowly", "collapses to a level far above"}
NUM_RUNS = int(os.environ.get("CRASHPROOF_MANY_RUNS", "1"))
HEAVY = {"heavy tails", "heavy tails, flat"}
"""Student's t with two degrees of freedom: it has true outliers."""


def bad_steps(losses: Sequence[float]) -> list[int]:
    usual = UsualLosses()
    return [step for step, loss in enumerate(losses) if judge_step(step, loss, [], usual) is not None]


def losses_of(shape: Shape, seed: int) -> list[float]:
    return shape.curve(random.Random(f"{shape.name}{seed}"), shape.length)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_finite_loss_is_bad_only_where_a_curve_has_a_spike(shape: Shape) -> None:
    num_spikes, num_steps = 0, 0
    for seed in range(NUM_RUNS):
        losses = losses_of(shape, seed)
        found = bad_steps(losses)
        finite = [step for step in found if math.isfinite(losses[step])]
        num_spikes, num_steps = num_spikes + len(finite), num_steps + len(losses)

        assert [step for step, loss in enumerate(losses) if not math.isfinite(loss)] == sorted({*found} - {*finite})
    print(f"{shape.name:40} {num_spikes:6,} of {num_steps:7,} steps")
    if shape.name in HAS_SPIKES:
        assert num_spikes
    else:
        assert num_spikes <= num_steps * (0.004 if shape.name in HEAVY else 0.0002)


@pytest.mark.parametrize(
    "loss, is_bad",
    [(2.2, False), (2.9, False), (3.2, True), (1e30, True), (-5.0, False), (math.inf, True), (math.nan, True)],
)
def test_a_spike_is_above_half_the_level_more(loss: float, is_bad: bool) -> None:
    assert ([len(FLAT)] if is_bad else []) == bad_steps([*FLAT, loss])


def test_without_noise_and_level_any_rise_is_a_spike_and_the_same_again_is_none() -> None:
    assert [20] == bad_steps([*[0.0] * 20, 1e-3, 0.0])


def test_too_few_healthy_losses_tell_no_spike() -> None:
    few = FLAT[: FEWEST_LOSSES + LAG_STEPS - 2]

    assert [] == bad_steps([*few, 50.0])
    assert [len(few)] == bad_steps([*few, math.nan])
    assert [len(few) + 1] == bad_steps([*few, 2.0, 50.0])


def test_a_limit_rests_on_losses_that_are_known_two_steps_before() -> None:
    usual = UsualLosses(list(enumerate(FLAT)))
    before = usual.limit_at(40)
    usual.add(40, 2.0)

    assert before is not None
    assert (38 + 1, before) == (before.num_losses, usual.limit_at(40))
    assert before != usual.limit_at(42)


def test_what_is_known_begins_the_same_again() -> None:
    usual = UsualLosses()
    for step, loss in enumerate(FLAT * 10):
        judge_step(step, loss, [], usual)

    again = UsualLosses(usual.known())

    assert [usual.limit_at(step) for step in (400, 401, 402)] == [again.limit_at(step) for step in (400, 401, 402)]


def test_bad_losses_are_not_learned_from() -> None:
    assert [*range(40, 60)] == bad_steps([*FLAT, *[30.0] * 20, *FLAT])


def test_a_limit_is_a_number_of_float32_also_where_losses_are_not() -> None:
    huge = UsualLosses(list(enumerate([1e300] * 20))).limit_at(22)

    assert huge is not None
    assert math.isfinite(huge.loss)
    assert cause_of(1e300, huge) == "spike"


def test_a_finding_says_what_is_usual() -> None:
    usual = UsualLosses(list(enumerate(FLAT)))
    window = DataWindow(320, 328)

    spike = judge_step(1040, 14.25, [window], usual)
    early = judge_step(3, math.nan, [], UsualLosses())

    assert isinstance(spike, BadStepFinding)
    assert ("spike", (window,)) == (spike.cause, spike.data)
    assert (
        "step 1,040 has a loss of 14.25; the 40 healthy losses before it are about 2, and up to 3 would have passed."
        == spike.evidence
    )
    assert isinstance(early, BadStepFinding)
    assert "step 3 has a non-finite loss." == early.evidence
