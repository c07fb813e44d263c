"""Plain numbers take a short way; what is recorded is the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crashproof import ProgressTracker, RunReader
from crashproof.testing import FakeClock

Report = tuple[int, float, dict[str, float], float, int, int]


def made_reports(seed: int) -> list[Report]:
    """Reports of one attempt: steps left out, back or again; counts that fall; losses that are not finite."""
    chance, step, reports = random.Random(seed), 0, []
    for _ in range(120):
        step = max(0, step + chance.choice([1, 1, 1, 1, 1, 2, 0, -3]))
        loss = chance.choice([chance.gauss(2.0, 1.0)] * 12 + [float("nan"), float("inf"), 1.7e308])
        components = {"kd": loss, "ce": chance.random()} if chance.random() < 0.9 else {"ü": 0.5, "": 1.0}
        reports.append((step, loss, components, 1e-4, chance.choice([8 * step, 8 * step, 5]), 64 * step))
    return reports


def journal_of(tracker: ProgressTracker, clock: FakeClock, seed: int, as_number: Callable[[float], Any]) -> bytes:
    chance = random.Random(seed)
    for step, loss, components, rate, samples, tokens in made_reports(seed):
        clock.advance(chance.choice([0.0, 0.01, 0.3, 20.0]))
        tracker.update_metrics(step, as_number(loss), components, rate, samples, tokens)
        if chance.random() < 0.05:
            tracker.record_pause(0.1)
    tracker.close()
    return tracker.metrics_file.read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_python_floats_and_other_numbers_make_the_same_journal(
    open_tracker: Callable[..., Any], tmp_path: Path, seed: int
) -> None:
    clocks = FakeClock(), FakeClock()
    plain, other = (
        open_tracker(output_dir=tmp_path / name, session_id="training_1", clock=clock)
        for name, clock in zip(("plain", "other"), clocks, strict=True)
    )

    assert journal_of(plain, clocks[0], seed, float) == journal_of(other, clocks[1], seed, np.float64)
    for name in ("plain", "other"):
        assert [] == RunReader.open(tmp_path / name).problems()


def test_a_recomputed_step_is_compared_whatever_its_numbers_are(
    open_tracker: Callable[..., Any], update: Callable[..., None]
) -> None:
    first = open_tracker()
    for step in range(1, 6):
        update(first, step, loss=1.0)
    second = open_tracker()
    update(second, 3, loss=1.0)
    update(second, 4, loss=1.5)

    assert 4 == second.session.replay_differed_at


@pytest.mark.parametrize("value", [2**63, -1, True, 1.5, "5", None], ids=str)
def test_odd_counts_take_the_long_way(
    open_tracker: Callable[..., Any], update: Callable[..., None], value: Any
) -> None:
    tracker = open_tracker()
    tracker.update_metrics(1, 1.0, {}, 0.1, 8, 64)
    tracker.update_metrics(2, 1.0, {}, 0.1, value, 128)

    newest = tracker.session.metrics_history[-1]
    assert (2, 128) == (newest.step, newest.tokens_processed)
    assert isinstance(newest.samples_processed, int)
    assert 0 <= newest.samples_processed < 2**63
    assert [] == RunReader.open(tracker.metrics_file.parent.parent).problems()


def test_what_the_loop_changes_later_is_not_in_the_record(open_tracker: Callable[..., Any]) -> None:
    tracker, components = open_tracker(), {"kd": 1.0}
    tracker.update_metrics(1, 1.0, components, 0.1, 1, 1)
    components["kd"] = 2.0

    assert {"kd": 1.0} == tracker.session.metrics_history[-1].loss_components
