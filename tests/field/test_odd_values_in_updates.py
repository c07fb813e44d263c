"""Values and names that training loops pass by accident: each is recorded or left out, and none ends a training."""

from __future__ import annotations

import datetime
import enum
import json
import logging
import math
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.records.states import AlertKind, LossVerdict


@dataclass
class Part:
    top1: float = 0.5
    label: str = "best"


class Level(enum.IntEnum):
    HIGH = 3


class Unreadable:
    """A proxy whose every attribute fails."""

    def __getattr__(self, name: str) -> object:
        raise ConnectionError(name)

    def __repr__(self) -> str:
        raise ConnectionError


def holds_itself() -> dict[str, Any]:
    cycle: dict[str, Any] = {"top1": 0.5}
    cycle["again"] = cycle
    return cycle


@pytest.fixture
def open_run(run_dir: Path) -> Iterator[Callable[[], ProgressTracker]]:
    trackers: list[ProgressTracker] = []

    def opens() -> ProgressTracker:
        settings = TrackerSettings(has_heartbeat=False)
        trackers.append(ProgressTracker(run_dir / "progress", {"lr": 0.1}, 10, settings=settings))
        return trackers[-1]

    yield opens
    for tracker in trackers:
        tracker.close()


def recorded(run_dir: Path) -> dict[str, Any]:
    """The newest line, as other programs read it."""
    assert [] == RunReader.open(run_dir).problems()
    line: dict[str, Any] = json.loads((run_dir / "progress" / "metrics.jsonl").read_bytes().splitlines()[-1])
    return line


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param(0.5, {"x": 0.5}, id="float"),
        pytest.param(True, {"x": 1.0}, id="bool"),
        pytest.param(Decimal("0.5"), {"x": 0.5}, id="decimal"),
        pytest.param(Fraction(1, 2), {"x": 0.5}, id="fraction"),
        pytest.param(np.float16(0.5), {"x": 0.5}, id="numpy-half"),
        pytest.param(np.array([[0.5]]), {"x": 0.5}, id="array-of-one"),
        pytest.param(torch.tensor([0.5], requires_grad=True), {"x": 0.5}, id="tensor-of-one-with-gradient"),
        pytest.param(Level.HIGH, {"x": 3.0}, id="whole-number-enum"),
        pytest.param({"top1": 0.5}, {"x/top1": 0.5}, id="mapping"),
        pytest.param({"a": {"b": {"c": 1}}}, {"x/a/b/c": 1.0}, id="deep-mapping"),
        pytest.param([0.25, 0.75], {"x/0": 0.25, "x/1": 0.75}, id="list"),
        pytest.param(np.array([0.25, 0.75]), {"x/0": 0.25, "x/1": 0.75}, id="small-array"),
        pytest.param(torch.tensor([[0.25], [0.75]]), {"x/0": 0.25, "x/1": 0.75}, id="small-tensor"),
        pytest.param(Part(), {"x/top1": 0.5}, id="dataclass"),
        pytest.param(SimpleNamespace(top1=0.5), {"x/top1": 0.5}, id="namespace"),
        pytest.param(namedtuple("Pair", "p r")(0.25, 0.75), {"x/p": 0.25, "x/r": 0.75}, id="named-tuple"),
        pytest.param({1: 0.5}, {"x/1": 0.5}, id="key-that-is-a-number"),
        pytest.param(holds_itself(), {"x/top1": 0.5}, id="mapping-that-holds-itself"),
        pytest.param({}, {}, id="empty-mapping"),
        pytest.param([], {}, id="empty-list"),
        pytest.param(None, {}, id="none"),
        pytest.param("good", {}, id="text"),
        pytest.param("0.5", {}, id="text-of-a-number"),
        pytest.param(b"0.5", {}, id="bytes"),
        pytest.param("\ud800", {}, id="half-a-character"),
        pytest.param(1j, {}, id="complex"),
        pytest.param(10**5000, {}, id="number-beyond-floats"),
        pytest.param({1, 2}, {}, id="set"),
        pytest.param(torch.zeros(1000), {}, id="large-tensor"),
        pytest.param(torch.zeros(1, device="meta"), {}, id="tensor-without-data"),
        pytest.param(np.zeros((0, 3)), {}, id="empty-array"),
        pytest.param(datetime.date(2024, 1, 1), {}, id="date"),
        pytest.param(Path("results.json"), {}, id="path"),
        pytest.param(print, {}, id="function"),
        pytest.param((each for each in [0.5]), {}, id="generator"),
        pytest.param(Unreadable(), {}, id="object-that-cannot-be-read"),
    ],
)
def test_a_component_is_recorded_by_what_it_holds_and_training_goes_on(open_run, run_dir, value, expected):
    tracker = open_run()
    tracker.update_metrics(1, 0.5, {"x": value, "kd": 1.0}, 0.1, 8, 100)
    tracker.record_evaluation(1, {"x": value, "f1": 1.0})

    assert expected | {"kd": 1.0} == recorded(run_dir)["loss_components"]
    assert expected | {"f1": 1.0} == tracker.session.evaluations[-1].results


def test_text_is_skipped_with_one_warning_that_names_it(open_run, caplog):
    tracker = open_run()
    with caplog.at_level(logging.WARNING, logger="crashproof"):
        for step in (1, 2, 3):
            tracker.update_metrics(step, 0.5, {"note": "good", "acc": {"best": None}}, 0.1, 8, 100)

    assert 1 == len(caplog.records)
    assert "note (str 'good'), acc/best (NoneType None)" in caplog.text


def test_ten_thousand_names_that_a_program_makes_up_do_not_fill_the_log(open_run, caplog):
    tracker = open_run()
    for step in range(200):
        tracker.update_metrics(step, 0.5, {f"note of step {step}": "good"}, 0.1, 8, 100)

    assert len(caplog.records) < 60


@pytest.mark.parametrize(
    "components, expected",
    [
        pytest.param({None: 0.5}, {"None": 0.5}, id="none"),
        pytest.param({"\ud800": 0.5}, {"\\ud800": 0.5}, id="half-a-character"),
        pytest.param({"損失": 0.5}, {"損失": 0.5}, id="japanese"),
        pytest.param({"": 0.5}, {"": 0.5}, id="empty"),
        pytest.param({("a", 1): 0.5}, {"('a', 1)": 0.5}, id="tuple"),
        pytest.param({b"kd": 0.5}, {"b'kd'": 0.5}, id="bytes"),
        pytest.param({1: 0.25, "1": 0.5}, {"1'": 0.25, "1": 0.5}, id="number-and-its-text"),
        pytest.param({"a/b": 0.25, "a": {"b": 0.5}}, {"a/b": 0.25, "a/b'": 0.5}, id="nested-and-joined"),
    ],
)
def test_a_name_is_kept_or_renamed_and_never_lost(open_run, run_dir, components, expected):
    tracker = open_run()
    tracker.update_metrics(1, 0.5, components, 0.1, 8, 100)
    tracker.record_evaluation(1, components)

    assert expected == recorded(run_dir)["loss_components"]
    assert expected == tracker.session.evaluations[-1].results
    tracker.close()
    assert expected == open_run().session.evaluations[-1].results


@pytest.mark.parametrize("loss", [Decimal("0.5"), Fraction(1, 2), np.array([0.5]), torch.tensor([[0.5]])], ids=repr)
def test_a_loss_of_any_number_type_is_a_loss(open_run, run_dir, loss):
    open_run().update_metrics(1, loss, {}, loss, 8, 100)

    assert (0.5, 0.5) == (recorded(run_dir)["loss"], recorded(run_dir)["learning_rate"])
    assert "without_loss" not in recorded(run_dir)


@pytest.mark.parametrize("loss", [None, "n/a", {"total": 0.5}, torch.zeros(3), print], ids=repr)
def test_a_step_without_a_loss_counts_and_is_no_nan_loss(open_run, run_dir, loss, caplog):
    tracker = open_run()
    for step in range(1, 9):
        tracker.update_metrics(step, loss, {"d_loss": 0.5}, 0.1, step, step)
    tracker.save()

    session = RunReader.open(run_dir).session()
    assert 8 == session.steps_completed
    assert {AlertKind.NON_FINITE} & {alert.kind for alert in session.alerts} == set()
    assert (False, LossVerdict.UNKNOWN) == (
        tracker.get_loss_trend()["has_data"],
        tracker.get_progress_summary()["loss_trend"]["verdict"],
    )
    assert 1 == sum("without a loss" in each.message for each in caplog.records)
    assert {"d_loss": 0.5} == recorded(run_dir)["loss_components"]


def test_a_nan_loss_is_still_an_alert(open_run, run_dir):
    tracker = open_run()
    for step in range(1, 9):
        tracker.update_metrics(step, math.nan, {}, 0.1, step, step)
    tracker.save()

    assert LossVerdict.NON_FINITE == tracker.get_progress_summary()["loss_trend"]["verdict"]


@pytest.mark.parametrize(
    "count, expected",
    [
        pytest.param(None, 8, id="none"),
        pytest.param(-1, 8, id="negative"),
        pytest.param(math.nan, 8, id="nan"),
        pytest.param("16", 8, id="text"),
        pytest.param(10**30, 8, id="beyond-64-bits"),
        pytest.param(16.5, 16, id="fraction"),
        pytest.param(Decimal(16), 16, id="decimal"),
        pytest.param(np.array([16]), 16, id="array-of-one"),
    ],
)
def test_a_count_that_is_none_leaves_the_count_where_it_was(open_run, run_dir, count, expected):
    tracker = open_run()
    tracker.update_metrics(1, 0.5, {}, 0.1, 8, 8)
    tracker.update_metrics(2, 0.5, {}, 0.1, count, count, "fast", None)

    line = recorded(run_dir)
    assert (2, expected, expected) == (line["step"], line["samples_processed"], line["tokens_processed"])


@pytest.mark.parametrize("position", [None, {"epoch": 1, "batch": 3}, "batch 3", -1, math.nan], ids=repr)
def test_a_checkpoint_with_an_odd_position_is_recorded_at_the_samples_of_its_step(
    open_run, run_dir, tmp_path, position, caplog
):
    tracker = open_run()
    tracker.update_metrics(1, 0.5, {}, 0.1, 8, 100)
    (run_dir / "checkpoint_1.pt").write_bytes(b"weights")
    tracker.record_checkpoint(1, run_dir / "checkpoint_1.pt", position, recovery_tags=["best", None, "\ud800"])

    found = tracker.get_recovery_checkpoint()
    assert (1, 8, ["best", "None", "\\ud800"]) == (found.checkpoint_step, found.dataset_position, found.recovery_tags)
    assert "dataset_position must be" in caplog.text
