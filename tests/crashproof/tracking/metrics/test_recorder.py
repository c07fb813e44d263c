"""What `MetricsRecorder` does is seen through the tracker; see also test_tracker.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "progress" / "metrics.jsonl").read_text().splitlines()]


def test_measured_throughput_is_rounded_and_a_given_one_is_not(
    open_tracker: Callable[..., Any], run_dir: Path, clock: Any
) -> None:
    tracker = open_tracker()
    clock.advance(3.0)
    tracker.update_metrics(1, 1.0, {}, 0.1, 1, 10)
    tracker.update_metrics(2, 1.0, {}, 0.1, 2, 20, throughput_samples_per_sec=1 / 3, throughput_tokens_per_sec=2 / 3)

    first, second = lines_of(run_dir)

    assert (0.333, 3.333) == (first["throughput_samples_per_sec"], first["throughput_tokens_per_sec"])
    assert (1 / 3, 2 / 3) == (second["throughput_samples_per_sec"], second["throughput_tokens_per_sec"])


def test_losses_are_written_in_full_precision(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    tracker = open_tracker()
    tracker.update_metrics(1, 0.1 + 0.2, {"kd": 1 / 3}, 1e-4 / 3, 1, 1)

    (line,) = lines_of(run_dir)

    assert (0.1 + 0.2, 1 / 3, 1e-4 / 3) == (line["loss"], line["loss_components"]["kd"], line["learning_rate"])


def test_a_value_that_json_cannot_hold_is_named(open_tracker: Callable[..., Any], run_dir: Path) -> None:
    tracker = open_tracker()
    tracker.update_metrics(1, float("nan"), {"kd": float("inf")}, 0.1, 1, 1)

    (line,) = lines_of(run_dir)

    assert (None, {"kd": None}) == (line["loss"], line["loss_components"])
    assert {"loss": "NaN", "loss_components.kd": "Infinity"} == line["nonfinite"]
