from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.adapters.accelerate import CrashproofTracker
from crashproof.errors import (
    BadStep,
    ConfigChanged,
    ConfigError,
    DiskFull,
    NoUsableCheckpoint,
    OtherRun,
    SavesFailed,
    StorageError,
)
from crashproof.testing import forget_open_runs

QUIET = TrackerSettings(has_heartbeat=False)


class Loop:
    """One process life of a tiny loop."""

    def __init__(self, run_dir: Path, config: dict[str, Any] | None = None, **options: Any) -> None:
        settings = options.pop("settings", QUIET)
        self.tracker = CrashproofTracker(run_dir, total_steps=10, samples_per_step=4, settings=settings, **options)
        self.accelerator = Accelerator(cpu=True, log_with=self.tracker)
        self.accelerator.init_trackers("tiny", config={"lr": 0.1} if config is None else config)
        self.model = self.accelerator.prepare(torch.nn.Linear(2, 1))

    def save(self, step: int) -> Path:
        return self.tracker.save_state(self.accelerator, step, step * 4)


@pytest.fixture
def start(run_dir: Path) -> Iterator[Any]:
    loops = []

    def begin(*arguments: Any, **options: Any) -> Loop:
        loops.append(Loop(run_dir, *arguments, **options))
        return loops[-1]

    yield begin
    for loop in loops:
        loop.tracker.finish()


def test_known_names_have_fields_of_their_own_and_the_rest_are_components(run_dir, start):
    loop = start()
    loop.accelerator.log({"loss": 0.5, "lr": 0.1, "ce": 0.3}, step=1)
    loop.accelerator.log({"loss": torch.tensor(math.nan), "learning_rate": 0.2, "samples": 9, "tokens": 7}, step=2)
    loop.accelerator.end_training()

    first, second = RunReader.open(run_dir).history()
    assert (0.5, 0.1, {"ce": 0.3}, 4, 0) == (
        first.loss,
        first.learning_rate,
        first.loss_components,
        first.samples_processed,
        first.tokens_processed,
    )
    assert math.isnan(second.loss)
    assert (0.2, 9, 7) == (second.learning_rate, second.samples_processed, second.tokens_processed)
    session = RunReader.open(run_dir).session()
    assert {"framework": "accelerate", "lr": 0.1} == session.config
    assert ["completed"] == [attempt.how for attempt in session.attempts]
    assert [] == RunReader.open(run_dir).problems()


def test_a_bad_step_is_raised_where_that_is_asked_for(run_dir, start):
    loop = start(on_bad_step="stop")
    loop.accelerator.log({"loss": 0.5}, step=1)
    with pytest.raises(BadStep, match=r"Step 2 has a non-finite loss\. It was computed from samples 4 to 7"):
        loop.accelerator.log({"loss": math.nan}, step=2)
    loop.accelerator.end_training()

    assert [1, 2] == [line.step for line in RunReader.open(run_dir).history()]


def test_values_without_a_loss_are_an_evaluation(run_dir, start, caplog):
    loop = start()
    for _ in range(2):
        loop.accelerator.log({"accuracy": 0.75}, step=3)

    assert 1 == caplog.text.count("Metrics without a loss were logged (accuracy)")
    assert [(3, {"accuracy": 0.75})] * 2 == [
        (each.step, each.results) for each in RunReader.open(run_dir).session().evaluations
    ]


def test_a_state_is_published_atomically_recorded_and_offered(run_dir, start):
    loop = start()
    with torch.no_grad():
        loop.model.weight.fill_(3.0)
    saved = loop.save(2)
    forget_open_runs()
    again = start()
    found = again.tracker.newest_state()
    again.accelerator.load_state(found.checkpoint_path)

    assert (str(saved), 2, 8) == (found.checkpoint_path, found.checkpoint_step, found.dataset_position)
    assert run_dir / "checkpoint_2" == saved
    assert torch.equal(torch.full((1, 2), 3.0), again.model.weight)
    assert [] == list(run_dir.glob(".*"))


def test_a_torn_state_is_quarantined_and_if_all_are_nothing_starts_at_zero(run_dir, start):
    loop = start()
    for step in (1, 2):
        (loop.save(step) / "model.safetensors").write_bytes(b"torn" if step == 2 else b"")
        if step == 1:
            loop.save(3)
    assert 3 == loop.tracker.newest_state().checkpoint_step
    (run_dir / "checkpoint_3" / "random_states_0.pkl").unlink()

    with pytest.raises(NoUsableCheckpoint, match=r"random_states_0\.pkl is missing|bytes instead of"):
        loop.tracker.newest_state()


def test_an_unrecorded_checkpoint_of_a_dead_process_is_quarantined(run_dir, start):
    loop = start()
    (run_dir / "checkpoint_2").mkdir()
    (run_dir / "checkpoint_2" / "model.safetensors").write_bytes(b"left")
    loop.save(2)

    assert 2 == loop.tracker.newest_state().checkpoint_step
    assert b"left" == (run_dir / "progress" / "set_aside" / "checkpoint_2" / "model.safetensors").read_bytes()


def test_a_save_that_fails_leaves_no_folder_and_no_record(run_dir, start, monkeypatch):
    loop = start()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.accelerator, "save_state", full)

    with pytest.raises(StorageError):
        loop.save(2)
    assert ["progress"] == [path.name for path in run_dir.iterdir()]
    assert {} == RunReader.open(run_dir).session().checkpoints
    failed = loop.tracker.tracker.session.failed_saves
    assert (1, 2) == (failed.in_a_row, failed.step)


def test_more_saves_in_a_row_than_may_fail_stop_a_loop_that_goes_on(run_dir, start, monkeypatch):
    loop = start(settings=TrackerSettings(has_heartbeat=False, max_failed_saves=1))

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.accelerator, "save_state", full)
    with pytest.raises(DiskFull):
        loop.save(2)

    with pytest.raises(SavesFailed, match=r"2 saves in a row have failed\. There is no checkpoint yet"):
        loop.save(4)


def test_starting_at_zero_despite_checkpoints_is_an_error(start):
    start().save(2)
    forget_open_runs()

    with pytest.raises(ConfigError, match="would begin at step 0"):
        start().accelerator.log({"loss": 0.5}, step=1)


def test_a_changed_config_and_a_foreign_folder_are_errors(run_dir, tmp_path, start):
    start().tracker.finish()
    with pytest.raises(ConfigChanged, match=r"lr: 0\.1 → 0\.2"):
        start({"lr": 0.2})
    start({"lr": 0.2}, on_config_change="continue")
    ProgressTracker(tmp_path / "other" / "progress", {"lr": 0.1}, 10, settings=QUIET).close()

    with pytest.raises(OtherRun, match="not one of accelerate"):
        Loop(tmp_path / "other")


def test_an_accelerator_that_names_its_own_checkpoints_is_refused(run_dir, start):
    loop = start()
    loop.accelerator.project_configuration = ProjectConfiguration(str(run_dir), automatic_checkpoint_naming=True)

    with pytest.raises(ConfigError, match="automatic_checkpoint_naming"):
        loop.save(1)


def test_how_the_attempt_ends_can_be_set(run_dir, start):
    loop = start()
    loop.tracker.end_as("preempted")
    loop.accelerator.end_training()

    assert ["preempted"] == [attempt.how for attempt in RunReader.open(run_dir).session().attempts]
