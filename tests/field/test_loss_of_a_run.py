"""The verdict on the loss of a run, wherever it is asked for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from crashproof import ProgressTracker, TrackerSettings
from crashproof.reading.run_reader import RunReader

MANUAL = TrackerSettings(has_heartbeat=False)


def train(tracker: ProgressTracker, losses: list[float], *, first: int = 1) -> None:
    for step, loss in enumerate(losses, start=first):
        tracker.update_metrics(step, loss, {}, 0.1, step, step)


def noisy(first: float, last: float, count: int, *, noise: float, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    return [first + (last - first) * step / count + chance.gauss(0.0, noise) for step in range(count)]


@pytest.fixture
def tracker(tmp_path):
    tracker = ProgressTracker(tmp_path / "progress", {"a": 1}, 3000, settings=MANUAL)
    yield tracker
    tracker.close()


def test_the_readme_loop_that_falls_without_noise_is_improving(tmp_path):
    tracker = ProgressTracker(tmp_path / "progress", {"a": 1}, 100, settings=MANUAL)
    weight = 10.0
    verdicts = set()
    for step in range(1, 101):
        weight -= 0.1 * weight
        tracker.update_metrics(step, weight**2, {"square": weight**2}, 0.1, step, step)
        if step >= 8:
            verdicts.add(tracker.get_loss_trend()["verdict"])
    tracker.close()

    assert {"improving"} == verdicts


def test_the_verdict_does_not_depend_on_the_window_and_is_the_same_in_every_file(tracker, tmp_path):
    train(tracker, noisy(2.2, 1.4, 2500, noise=0.2))
    tracker.save()
    asked = [tracker.get_loss_trend(window_size=size) for size in (10, 100, 1000)]
    written = json.loads((tmp_path / "progress" / "progress.json").read_text())["loss_trend"]
    read = RunReader.open(tmp_path).summary(now=0.0)["loss_trend"]

    assert [10, 100, 1000] == [each["window_size"] for each in asked]
    assert {"improving"} == {each["verdict"] for each in asked} | {written["verdict"], read["verdict"]}
    assert asked[0]["evidence"] == written["evidence"] == read["evidence"]
    assert written["evidence"].startswith("fell by ")
    assert written["change_low"] < written["change"] < written["change_high"] < 0
    assert written["confidence"] > 0.99


def test_what_is_rebuilt_from_the_journals_is_what_the_live_run_knew(tmp_path):
    folder = tmp_path / "progress"
    first = ProgressTracker(folder, {"a": 1}, 3000, settings=MANUAL)
    train(first, noisy(3.0, 2.0, 2200, noise=0.2))
    first.close()
    second = ProgressTracker(folder, {"a": 1}, 3000, settings=MANUAL)
    train(second, noisy(2.1, 2.0, 300, noise=0.2), first=2050)
    known = (second.session.loss_buckets, second.session.loss_updates_open, second.get_loss_trend())
    second.close()
    Path(folder / "session.json").unlink()
    rebuilt = ProgressTracker(folder, {"a": 1}, 3000, settings=MANUAL)
    found = (rebuilt.session.loss_buckets, rebuilt.session.loss_updates_open, rebuilt.get_loss_trend())
    rebuilt.close()

    assert known == found
    assert 2349 == sum(bucket.num_updates for bucket in found[0]) + found[1]


def test_a_real_divergence_raises_one_alert_that_says_by_how_much(tracker):
    train(tracker, noisy(2.0, 1.5, 600, noise=0.05))
    tracker.save()
    calm = list(tracker.session.alerts)
    train(tracker, noisy(1.5, 4.0, 300, noise=0.05), first=601)
    tracker.save()

    assert [] == calm
    (alert,) = tracker.session.alerts
    assert "diverging" == alert.kind
    assert alert.message.startswith("the loss rose by ")
