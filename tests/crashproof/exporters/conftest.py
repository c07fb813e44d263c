"""Runs that were killed and resumed, and what trackers' own readers find."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from crashproof import RunReader


@pytest.fixture
def train(open_tracker, update, clock, run_dir, save_checkpoint) -> Callable[..., Path]:
    """One attempt after the other, each from a step to a step, as kills and resumes make them."""

    def report(*attempts: tuple[int, int], total_steps: int = 10_000, saves: tuple[int, ...] = ()) -> Path:
        for first, last in attempts:
            tracker = open_tracker(total_steps=total_steps)
            for step in range(first, last + 1):
                clock.advance(seconds=1)
                loss = math.nan if step == 13 else random.Random(step).random()
                # The trackers keep floats of 32 bits, or print them: these are exact in all.
                update(tracker, step, loss=round(loss * 1024) / 1024 if step != 13 else loss)
                if step in saves:
                    save_checkpoint(tracker, step)
        return run_dir

    return report


@pytest.fixture
def canonical() -> Callable[[Path], list[tuple[int, float]]]:
    """Each step with its loss; NaN as text, so that it can be compared."""
    return lambda run: [(line.step, comparable(line.loss)) for line in RunReader.open(run).history()]


def comparable(value: float) -> float | str:
    return "NaN" if math.isnan(value) else value
