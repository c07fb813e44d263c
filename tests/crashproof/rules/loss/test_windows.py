from __future__ import annotations

import math

import pytest
from loss_curves import FollowedLosses

from crashproof.rules.loss.windows import LossHistory


def followed(losses: list[float]) -> LossHistory:
    run = FollowedLosses()
    for loss in losses:
        run.add(loss)
    return run.history()


@pytest.mark.parametrize("num_updates", [10, 999, 1001, 5000, 100_000])
def test_a_window_of_any_length_is_few_blocks_in_order(num_updates):
    blocks = followed([float(step) for step in range(num_updates)]).blocks(num_updates)
    levels = [block.level for block in blocks]

    assert len(blocks) <= 33
    assert sorted(levels) == levels
    assert 0.9 * num_updates <= sum(block.num_updates for block in blocks) <= num_updates


def test_the_newest_updates_can_be_left_out():
    history = followed([float(step) for step in range(20_000)])

    assert max(block.high for block in history.blocks(10_000, skip=5000)) < 15_500


def test_losses_that_are_not_finite_make_no_block():
    history = followed([math.nan] * 6400)

    assert [] == history.blocks(6400)
    assert [] == history.blocks(50)


def test_a_stretch_that_is_not_finite_is_passed_over():
    history = followed([1.0] * 3000 + [math.nan] * 64 * 20 + [2.0] * 2000)

    assert {1.0, 2.0} >= {block.level for block in history.blocks(6000) if block.low == block.high}
