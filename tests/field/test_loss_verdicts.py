"""The verdict on the loss, on curves of many shapes.

`CRASHPROOF_MANY_RUNS=20 pytest -s tests/field/test_loss_verdicts.py` looks at that many runs of each shape, and
more often, and prints the rates of error.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field

import pytest
from loss_curves import SHAPES, FollowedLosses, Shape, looks, right_verdicts

from crashproof.rules.trends import loss_trend

NUM_RUNS = int(os.environ.get("CRASHPROOF_MANY_RUNS", "1"))
NUM_LOOKS = 25 if NUM_RUNS == 1 else 100
MOST_WRONG = {
    "multiplicative noise": 0.3,
    "straight noisy fall, 2.2 to 1.4": 0.12,
    "a GAN's: flat, noisy, wandering": 0.1,
}
"""Where the noise hides the trend at some looks, or is one for a while."""


@dataclass
class Outcome:
    """The verdicts on all looks at a shape."""

    verdicts: Counter[str] = field(default_factory=Counter)
    num_wrong: int = 0
    false_alarms: int = 0
    delays: list[float] = field(default_factory=list)
    """How long after the onset each run was found to diverge, as a share of the steps up to the onset."""

    @property
    def num_looks(self) -> int:
        return self.verdicts.total()


def verdict_on(losses: FollowedLosses, progress: float) -> str:
    history = losses.history()
    return loss_trend(losses.recent, moving_avg_loss=None, history=history, progress=progress).verdict


def outcome_of(shape: Shape) -> Outcome:
    outcome = Outcome()
    for seed in range(NUM_RUNS):
        noticed = math.inf
        for step, losses in looks(shape, seed, NUM_LOOKS):
            share = step / shape.length
            right = right_verdicts(shape, share)
            if right is None:
                continue
            verdict = verdict_on(losses, share)
            outcome.verdicts[verdict] += 1
            outcome.num_wrong += verdict not in right
            outcome.false_alarms += verdict == "diverging" and "diverging" not in right
            if shape.onset is not None and share > shape.onset and verdict == "diverging":
                noticed = min(noticed, share / shape.onset - 1.0)
        if shape.onset is not None:
            outcome.delays.append(noticed)
    return outcome


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_verdict_is_right_whenever_somebody_looks(shape):
    outcome = outcome_of(shape)
    wrong = outcome.num_wrong / outcome.num_looks
    print(
        f"{shape.name:40} {outcome.num_looks:6,} looks, {wrong:6.1%} wrong, {outcome.false_alarms:3} false alarms, "
        f"noticed within {max(outcome.delays, default=0.0):5.1%}  {dict(outcome.verdicts)}"
    )

    assert wrong <= MOST_WRONG.get(shape.name, 0.05)
    assert outcome.false_alarms <= 0.002 * outcome.num_looks
    # An alarm can come no sooner than the next look.
    look = 1.0 / NUM_LOOKS / (shape.onset or 1.0)
    assert max(outcome.delays, default=0.0) <= shape.late + look
