"""What loops with Accelerate log, and when: nothing of it ends a training."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate")

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from crashproof import RunReader, TrackerSettings
from crashproof.adapters.accelerate import CrashproofTracker


class Elsewhere(GeneralTracker):
    """Another tracker beside ours."""

    name = "elsewhere"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[Any] = []

    @property
    def tracker(self) -> list[Any]:
        return self.logged

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.logged.append(values)


@pytest.fixture
def begin(run_dir: Path) -> Iterator[Callable[..., tuple[CrashproofTracker, Accelerator]]]:
    trackers: list[CrashproofTracker] = []

    def begins(config: Any = None, *others: GeneralTracker) -> tuple[CrashproofTracker, Accelerator]:
        settings = TrackerSettings(has_heartbeat=False)
        trackers.append(CrashproofTracker(run_dir, total_steps=10, samples_per_step=4, settings=settings))
        accelerator = Accelerator(cpu=True, log_with=[*others, trackers[-1]])
        accelerator.init_trackers("tiny", config=config)
        return trackers[-1], accelerator

    yield begins
    for tracker in trackers:
        tracker.finish()


def test_nested_numbers_text_and_none_are_logged_like_any_step(begin, run_dir, caplog):
    _, accelerator = begin({"lr": np.float64(0.1)})
    for step in (1, 2):
        accelerator.log(
            {"loss": torch.tensor([0.5]), "acc": {"top1": 0.5}, "note": "good", "best": None, None: 1}, step=step
        )

    lines = list(RunReader.open(run_dir).history())
    assert [(1, 0.5), (2, 0.5)] == [(line.step, line.loss) for line in lines]
    assert {"acc/top1": 0.5, "None": 1.0} == lines[0].loss_components
    assert 1 == caplog.text.count("note (str 'good'), best (NoneType None)")


@pytest.mark.parametrize(
    "values, loss",
    [
        pytest.param({"train_loss": 0.5}, 0.5, id="train_loss"),
        pytest.param({"train/loss": 0.5, "lr": 0.1}, 0.5, id="train/loss"),
        pytest.param({"loss/train": 0.5, "grad_norm": 1.0}, 0.5, id="loss/train"),
        pytest.param({"Training Loss": 0.5}, 0.5, id="words"),
        pytest.param({"total_loss": 0.5, "kl_loss": 0.25, "ce_loss": 0.25}, 0.5, id="total-and-parts"),
        pytest.param({"train": {"loss": 0.5, "acc": 0.25}}, 0.5, id="nested"),
        pytest.param({"ce_loss": 0.5, "val_loss": 0.75}, 0.5, id="one-loss-of-training"),
        pytest.param({"d_loss": 0.5, "g_loss": 0.25}, None, id="two-networks"),
    ],
)
def test_a_loss_by_another_name_advances_the_run(begin, run_dir, values, loss):
    tracker, accelerator = begin({"lr": 0.1})
    for step in (1, 2, 3):
        accelerator.log(values, step=step)

    line = list(RunReader.open(run_dir).history())[-1]
    assert 3 == tracker.tracker.session.steps_completed
    assert [] == tracker.tracker.session.evaluations
    assert (3, loss) == (line.step, None if line.without_loss else line.loss)


@pytest.mark.parametrize("name", ["eval_loss", "val/loss", "validation loss", "test_loss", "accuracy"])
def test_results_of_an_evaluation_do_not_advance_the_run(begin, name):
    tracker, accelerator = begin({"lr": 0.1})
    accelerator.log({"loss": 0.5}, step=1)
    accelerator.log({name: 0.75}, step=2)

    assert 1 == tracker.tracker.session.steps_completed
    assert [(2, {name: 0.75})] == [(each.step, each.results) for each in tracker.tracker.session.evaluations]


def test_logs_without_a_step_are_counted(begin, run_dir, caplog):
    tracker, accelerator = begin({"lr": 0.1})
    for _ in range(3):
        accelerator.log({"loss": 0.5})
    accelerator.log({"accuracy": 0.75})

    assert [1, 2, 3] == [line.step for line in RunReader.open(run_dir).history()]
    assert [3] == [each.step for each in tracker.tracker.session.evaluations]
    assert 1 == caplog.text.count("logged without a step")


@pytest.mark.parametrize("values", [None, "text", [0.5], {}, {"note": "good"}, 0.5], ids=repr)
def test_a_log_that_holds_no_number_records_nothing(begin, run_dir, values):
    tracker, _ = begin({"lr": 0.1})
    tracker.log(values, step=1)
    tracker.log({"loss": 0.5}, step=torch.tensor(1))

    assert [1] == [line.step for line in RunReader.open(run_dir).history()]
    assert [] == tracker.tracker.session.evaluations


def test_a_log_before_the_trackers_are_set_up_is_ignored(run_dir):
    tracker = CrashproofTracker(run_dir, total_steps=10)
    Accelerator(cpu=True, log_with=tracker).log({"loss": 0.5}, step=1)

    assert not run_dir.exists()


def test_a_run_without_a_config_is_recorded_and_continued(begin, run_dir, caplog):
    for step in (1, 2):
        _, accelerator = begin()
        accelerator.log({"loss": 0.5}, step=step)
        accelerator.end_training()

    assert [1, 2] == [line.step for line in RunReader.open(run_dir).history()]
    assert 2 == caplog.text.count("got no config")


def test_a_run_that_loses_its_config_keeps_it(begin, run_dir):
    for step, config in ((1, {"lr": 0.1}), (2, None), (3, {"lr": 0.1})):
        _, accelerator = begin(config)
        accelerator.log({"loss": 0.5}, step=step)
        accelerator.end_training()

    assert {"framework": "accelerate", "lr": 0.1} == RunReader.open(run_dir).session().config


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(argparse.Namespace(lr=0.1, betas=(0.9, np.float32(0.95))), id="arguments-of-a-command"),
        pytest.param({"lr": np.float64(0.1), "mask": np.zeros(3), None: Path("here")}, id="odd-values"),
    ],
)
def test_a_config_of_odd_values_opens_the_run_and_continues_it(begin, run_dir, config):
    for step in (1, 2):
        _, accelerator = begin(config)
        accelerator.log({"loss": 0.5}, step=step)
        accelerator.end_training()

    assert [1, 2] == [line.step for line in RunReader.open(run_dir).history()]


def test_end_training_twice_and_a_log_after_it_change_nothing(begin, run_dir, caplog):
    _, accelerator = begin({"lr": 0.1})
    accelerator.log({"loss": 0.5}, step=1)
    accelerator.end_training()
    accelerator.end_training()
    for _ in range(2):
        accelerator.log({"loss": 0.5}, step=2)

    assert [1] == [line.step for line in RunReader.open(run_dir).history()]
    assert ["completed"] == [attempt.how for attempt in RunReader.open(run_dir).session().attempts]
    assert 1 == caplog.text.count("after end_training")


def test_trackers_set_up_again_after_the_end_continue_the_run(begin, run_dir):
    _, accelerator = begin({"lr": 0.1})
    accelerator.log({"loss": 0.5}, step=1)
    accelerator.end_training()
    accelerator.init_trackers("tiny", config={"lr": 0.1})
    accelerator.log({"loss": 0.5}, step=2)

    assert [1, 2] == [line.step for line in RunReader.open(run_dir).history()]


def test_other_trackers_beside_it_get_the_same_and_log_arguments_are_theirs(begin, run_dir):
    other = Elsewhere()
    tracker, accelerator = begin({"lr": 0.1}, other)
    accelerator.log({"loss": 0.5}, step=1, log_kwargs={"crashproof": {"commit": True}, "elsewhere": {"tags": 1}})

    assert [{"lr": 0.1}, {"loss": 0.5}] == other.logged
    assert [1] == [line.step for line in RunReader.open(run_dir).history()]
    assert tracker is accelerator.get_tracker("crashproof")


def test_a_finished_run_started_again_offers_its_end_and_completes(begin, run_dir):
    tracker, accelerator = begin({"lr": 0.1})
    accelerator.prepare(torch.nn.Linear(2, 1))
    accelerator.log({"loss": 0.5}, step=10)
    tracker.save_state(accelerator, 10, 40)
    # The process dies here.
    tracker.tracker.close("raised")
    tracker, accelerator = begin({"lr": 0.1})
    found = tracker.newest_state()
    accelerator.end_training()

    assert (10, 40) == (found.checkpoint_step, found.dataset_position)
    session = RunReader.open(run_dir).session()
    assert (10, "completed") == (session.steps_completed, session.attempts[-1].how)
