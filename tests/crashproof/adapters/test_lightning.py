from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.adapters.lightning import Crashproof, ResumableLoader
from crashproof.errors import (
    BadStep,
    CheckpointDamaged,
    CheckpointMismatch,
    ConfigChanged,
    ConfigError,
    DiskFull,
    NoUsableCheckpoint,
    OtherRun,
    RunInUse,
    SavesFailed,
)
from crashproof.optional_dependencies import install_line
from crashproof.records.events import CheckpointRecorded
from crashproof.testing import FaultyDisk

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",
    "ignore:.*does not have many workers",
    "ignore:.*number of training batches",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You defined a `validation_step`",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
)

QUIET = TrackerSettings(has_heartbeat=False)


class Model(LightningModule):
    def __init__(self, lr: float = 0.1, at_batch: Callable[[LightningModule, int], None] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters("lr")
        self.layer = nn.Linear(2, 1)
        self.at_batch = at_batch

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("part", loss.detach() * 2)
        if batch_idx % 2 == 0:
            self.log("now_and_then", float(batch_idx))
        self.log("mean_part", loss.detach(), on_step=False, on_epoch=True)
        if self.at_batch is not None:
            self.at_batch(self, batch_idx)
        # Adding it changes no gradient.
        return loss + (math.nan if batch_idx == 2 else 0.0)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


def data(num_samples: int = 10) -> TensorDataset:
    return TensorDataset(torch.linspace(-1, 1, 2 * num_samples).reshape(num_samples, 2))


def trainer(hold: Crashproof, *callbacks: Any, **options: Any) -> Trainer:
    arguments = {
        "callbacks": [hold.callback, *callbacks],
        "logger": hold.logger,
        "plugins": [hold.checkpoint_io],
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": bool(callbacks),
    }
    return Trainer(**(arguments | options))


def fit(run_dir: Path, *callbacks: Any, model: Model | None = None, **options: Any) -> Trainer:
    hold = Crashproof(run_dir, settings=QUIET)
    made = trainer(hold, *callbacks, **options)
    loaders = ResumableLoader(data(), batch_size=2, seed=1), DataLoader(data(4), batch_size=2)
    made.fit(model or Model(), *loaders, ckpt_path=hold.newest_checkpoint())
    return made


def saving(run_dir: Path, **options: Any) -> ModelCheckpoint:
    arguments = {"dirpath": run_dir, "filename": "checkpoint_{step}", "auto_insert_metric_name": False}
    return ModelCheckpoint(**(arguments | {"every_n_train_steps": 1, "save_top_k": -1} | options))


def dies(step: int) -> Callable[[LightningModule, int], None]:
    def at_batch(model: LightningModule, batch_idx: int) -> None:
        if model.global_step == step:
            raise RuntimeError("the machine is on fire")

    return at_batch


class FullFor(Callback):
    """Saves after each step, and goes on where the disk is full, as it is for some steps."""

    def __init__(self, hold: Crashproof, disk: FaultyDisk, *steps: int) -> None:
        self.hold, self.disk, self.steps = hold, disk, steps

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        path = self.hold.output_dir / f"checkpoint_{trainer.global_step}.ckpt"
        if trainer.global_step in self.steps:
            self.disk.begin_failing(errno.ENOSPC)
        try:
            trainer.save_checkpoint(path)
        except DiskFull:
            assert trainer.global_step in self.steps
        finally:
            self.disk.stop_failing()


@pytest.mark.parametrize("most", [None, 1])
def test_saves_that_fail_are_counted_and_a_number_that_is_set_ends_the_training(run_dir, tmp_path, most):
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    settings = TrackerSettings(has_heartbeat=False, max_failed_saves=most)
    hold = Crashproof(run_dir, settings=settings, disk=disk)
    made = trainer(hold, FullFor(hold, disk, 2, 3, 4))
    loader = ResumableLoader(data(), batch_size=2, seed=1)
    if most is None:
        made.fit(Model(), loader)
    else:
        with pytest.raises(SavesFailed, match="Step 3 could not be saved"):
            made.fit(Model(), loader)

    session = RunReader.open(run_dir).session()
    assert (([1, 5], 3) if most is None else ([1], 2)) == (sorted(session.checkpoints), session.failed_saves.total)
    assert [] == RunReader.open(run_dir).problems()


def test_a_bad_step_ends_the_training_only_where_that_is_asked_for(run_dir):
    hold = Crashproof(run_dir, settings=QUIET, on_bad_step="stop")
    made = trainer(hold, saving(run_dir))
    with pytest.raises(BadStep, match=r"Step 3 has a non-finite loss\..* newest healthy checkpoint is checkpoint_2"):
        made.fit(Model(), ResumableLoader(data(), batch_size=2, seed=1))

    session = RunReader.open(run_dir).session()
    assert ([(3, "reported")], "raised") == (
        [(each.step, each.action) for each in session.bad_steps],
        session.attempts[-1].how,
    )
    with pytest.raises(ConfigError, match="on_bad_step must be 'stop' or None here, got 'rollback'"):
        Crashproof(run_dir, on_bad_step="rollback")


def test_every_step_has_its_loss_its_rate_and_what_was_logged_in_it(run_dir):
    fit(run_dir)

    history = list(RunReader.open(run_dir).history())
    assert [1, 2, 3, 4, 5] == [line.step for line in history]
    assert [2, 4, 6, 8, 10] == [line.samples_processed for line in history]
    assert {0.1} == {line.learning_rate for line in history}
    assert [True, False, True, False, True] == ["now_and_then" in line.loss_components for line in history]
    assert [False, False, True, False, False] == [math.isnan(line.loss) for line in history]
    assert all(line.loss_components["part"] == pytest.approx(2 * line.loss) for line in history if line.step != 3)
    assert [] == RunReader.open(run_dir).problems()


def test_the_loss_of_a_step_is_the_mean_over_its_batches_also_where_the_last_step_has_fewer(run_dir):
    # What a rate of zero leaves is the loss of each batch by the same weights.
    torch.manual_seed(3)
    fit(run_dir / "each", model=Model(lr=0.0))
    torch.manual_seed(3)
    fit(run_dir / "three", model=Model(lr=0.0), accumulate_grad_batches=3)

    batches = [line.loss_components["part"] / 2 for line in RunReader.open(run_dir / "each").history()]
    last = list(RunReader.open(run_dir / "three").history())[-1]
    assert 2 == last.step
    assert sum(batches[3:]) / 2 == pytest.approx(last.loss)


def test_hyperparameters_join_the_config_and_epoch_means_join_the_evaluation(run_dir):
    fit(run_dir)

    session = RunReader.open(run_dir).session()
    assert {"framework": "lightning", "lr": 0.1} == session.config
    assert 5 == session.total_steps_target
    assert [5, 5] == [each.step for each in session.evaluations]
    assert [{"val_loss"}, {"mean_part"}] == [set(each.results) for each in session.evaluations]


def test_what_another_callback_logs_is_a_component_of_the_current_step(run_dir):
    fit(run_dir, LearningRateMonitor(logging_interval="step"), enable_checkpointing=False)

    assert [0.1] * 5 == [line.loss_components["lr-SGD"] for line in RunReader.open(run_dir).history()]
    assert 2 == len(RunReader.open(run_dir).session().evaluations)


def test_a_checkpoint_is_recorded_with_its_loss_and_removed_only_after_a_newer_one_was_recorded(run_dir):
    fit(run_dir, saving(run_dir, save_top_k=2, monitor="step", mode="max"))

    session = RunReader.open(run_dir).session()
    assert {4, 5} == set(session.checkpoints)
    assert ["checkpoint_4.ckpt", "checkpoint_5.ckpt"] == sorted(path.name for path in run_dir.glob("*.ckpt"))
    assert 10 == session.checkpoints[5].dataset_position
    assert session.metrics_history[-1].loss == session.checkpoints[5].metrics.loss
    events = [json.loads(line) for line in (run_dir / "progress" / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events if event["event"] in ("checkpoint_recorded", "checkpoint_removed")]
    assert ["checkpoint_recorded"] * 3 + ["checkpoint_removed"] == kinds[:4]


def test_a_checkpoint_of_weights_alone_is_written_and_not_offered(run_dir):
    fit(run_dir, saving(run_dir, save_weights_only=True))

    assert {} == RunReader.open(run_dir).session().checkpoints
    assert 5 == len(list(run_dir.glob("*.ckpt")))


def test_the_default_checkpoint_is_inside_the_run(run_dir):
    fit(run_dir, enable_checkpointing=True)

    assert ["checkpoints/epoch=0-step=5.ckpt"] == [
        each.checkpoint_path for each in RunReader.open(run_dir).session().checkpoints.values()
    ]


def test_an_exception_ends_the_attempt_as_raised_and_the_next_resumes_from_the_newest_checkpoint(run_dir):
    with pytest.raises(RuntimeError, match="on fire"):
        fit(run_dir, saving(run_dir), model=Model(at_batch=dies(3)))
    fit(run_dir, saving(run_dir))

    session = RunReader.open(run_dir).session()
    assert ["raised", "completed"] == [attempt.how for attempt in session.attempts]
    assert "RuntimeError: the machine is on fire" == session.attempts[0].error
    assert [1, 2, 3, 4, 5] == [line.step for line in RunReader.open(run_dir).history()]
    assert 0 == session.steps_recomputed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_completes_the_step_and_saves(run_dir, number):
    def at_batch(model: LightningModule, batch_idx: int) -> None:
        if batch_idx == 0:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        fit(run_dir, model=Model(at_batch=at_batch), accumulate_grad_batches=2)

    session = RunReader.open(run_dir).session()
    assert 75 == left.value.code
    assert ["preempted"] == [attempt.how for attempt in session.attempts]
    assert {1: "checkpoint_1.ckpt"} == {step: each.checkpoint_path for step, each in session.checkpoints.items()}
    assert before == signal.getsignal(number)


def test_a_torn_checkpoint_is_quarantined_and_the_one_before_it_is_offered(run_dir):
    fit(run_dir, saving(run_dir))
    (run_dir / "checkpoint_5.ckpt").write_bytes((run_dir / "checkpoint_5.ckpt").read_bytes()[:-100])

    assert str(run_dir / "checkpoint_4.ckpt") == Crashproof(run_dir).newest_checkpoint()
    assert ["checkpoint_5.ckpt"] == [path.name for path in (run_dir / "progress" / "set_aside").iterdir()]


def test_if_all_are_damaged_nothing_starts_at_zero_silently(run_dir):
    fit(run_dir, saving(run_dir))
    for path in run_dir.glob("*.ckpt"):
        path.write_bytes(b"torn")

    with pytest.raises(NoUsableCheckpoint, match=r"checkpoint_5\.ckpt: it has 4 bytes"):
        fit(run_dir)


def test_a_resumed_run_does_not_save_its_step_again_after_the_first_of_two_accumulated_batches(run_dir):
    with pytest.raises(RuntimeError):
        fit(run_dir, saving(run_dir), model=Model(at_batch=dies(1)), accumulate_grad_batches=2)
    fit(run_dir, saving(run_dir), accumulate_grad_batches=2)

    events = RunReader.open(run_dir).events()
    recorded = [each.checkpoint for each in events if isinstance(each, CheckpointRecorded)]
    assert [(1, 4), (2, 8), (3, 10)] == [(each.checkpoint_step, each.dataset_position) for each in recorded]


class SavesAfterEachBatch(Callback):
    """As `ModelCheckpoint(train_time_interval=…)` may, and Lightning when its job is requeued."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir, f"checkpoint_{trainer.fit_loop.total_batch_idx}.ckpt"))


def test_the_first_checkpoint_between_two_accumulated_batches_is_reported(run_dir, caplog):
    fit(run_dir, SavesAfterEachBatch(), accumulate_grad_batches=2, default_root_dir=run_dir)

    reported = [each.getMessage() for each in caplog.records if "accumulated batches" in each.getMessage()]
    assert ["step 0"] == [each.partition("after ")[2].partition(",")[0] for each in reported]


def test_a_forgotten_ckpt_path_is_an_error(run_dir):
    fit(run_dir, saving(run_dir))
    hold = Crashproof(run_dir, settings=QUIET)

    with pytest.raises(ConfigError, match=r"has 5 checkpoint.*would begin at step 0"):
        trainer(hold).fit(Model(), ResumableLoader(data(), batch_size=2, seed=1))
    assert 1 == len(RunReader.open(run_dir).session().attempts)


def test_a_fresh_folder_has_nothing_to_offer(run_dir):
    assert None is Crashproof(run_dir).newest_checkpoint()
    assert not run_dir.exists()


def test_changed_hyperparameters_are_an_error_unless_continue_is_set(run_dir):
    fit(run_dir, saving(run_dir), max_steps=2)
    with pytest.raises(ConfigChanged, match=r'lr: 0\.1 → 0\.2.*on_config_change="continue"'):
        fit(run_dir, saving(run_dir), model=Model(lr=0.2))
    hold = Crashproof(run_dir, settings=QUIET, on_config_change="continue")
    trainer(hold, saving(run_dir)).fit(
        Model(lr=0.2), ResumableLoader(data(), batch_size=2, seed=1), ckpt_path=hold.newest_checkpoint()
    )

    assert [1, 2, 3, 4, 5] == [line.step for line in RunReader.open(run_dir).history()]


def test_a_folder_of_another_program_is_left_alone(run_dir):
    ProgressTracker(run_dir / "progress", {"lr": 1}, 10, settings=QUIET).close()

    with pytest.raises(OtherRun, match="another program"):
        Crashproof(run_dir).newest_checkpoint()
    with pytest.raises(OtherRun, match="not one of lightning"):
        trainer(Crashproof(run_dir, settings=QUIET)).fit(Model(), ResumableLoader(data(), batch_size=2, seed=1))


def test_parts_used_without_each_other_are_an_error(run_dir):
    hold = Crashproof(run_dir, settings=QUIET)
    loader = ResumableLoader(data(), batch_size=2, seed=1)

    with pytest.raises(ConfigError, match=r"without hold\.checkpoint_io"):
        trainer(hold, plugins=None).fit(Model(), loader)
    with pytest.raises(ConfigError, match=r"hold\.logger is used without hold\.callback"):
        trainer(Crashproof(run_dir), callbacks=[]).fit(Model(), loader)
    with pytest.raises(ConfigError, match="must be one of continue, error here"):
        Crashproof(run_dir, on_config_change="archive")


def test_a_trainer_without_an_end_needs_a_number_of_steps(run_dir):
    hold = Crashproof(run_dir, settings=QUIET)

    with pytest.raises(ConfigError, match="neither max_steps nor data"):
        trainer(hold, max_epochs=-1).fit(Model(), ResumableLoader(data(), batch_size=2, seed=1))


def test_a_checkpoint_that_is_more_than_data_is_refused_when_it_is_saved(run_dir):
    class Odd(Model):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["where"] = Path("here")

    with pytest.raises(CheckpointMismatch, match=r"pathlib.*more than data"):
        fit(run_dir, saving(run_dir), model=Odd())
    assert {} == RunReader.open(run_dir).session().checkpoints


def test_a_checkpoint_is_read_as_data_whatever_the_arguments(run_dir, tmp_path):
    torch.save({"state_dict": {}, "where": Path("here")}, tmp_path / "theirs.ckpt")

    with pytest.raises(CheckpointDamaged, match="PyTorch cannot read it"):
        Crashproof(run_dir).checkpoint_io.load_checkpoint(tmp_path / "theirs.ckpt", weights_only=False)


def test_a_step_without_a_loss_is_recorded_without_one_and_logged_once(run_dir, caplog):
    class Silent(Model):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.step()

        @property
        def automatic_optimization(self) -> bool:
            return False

    with caplog.at_level(logging.WARNING, logger="crashproof"):
        fit(run_dir, model=Silent())

    assert [True] * 5 == [line.without_loss for line in RunReader.open(run_dir).history()]
    assert 1 == sum("without a loss" in record.message for record in caplog.records)


def test_a_run_that_another_process_writes_is_an_error(run_dir):
    holder = (
        "import sys, time; from crashproof import ProgressTracker\n"
        "tracker = ProgressTracker(sys.argv[1], {'framework': 'lightning', 'lr': 0.1}, 5)\n"
        "print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run_dir / "progress")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert "open\n" == process.stdout.readline()
        try:
            with pytest.raises(RunInUse, match=f"process {process.pid} "):
                fit(run_dir)
        finally:
            process.kill()


@pytest.mark.parametrize("adapter", ["lightning", "accelerate"])
def test_an_older_version_is_reported_with_the_install_line(tmp_path, adapter):
    described = tmp_path / f"{adapter}-1.0.0.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text(f"Metadata-Version: 2.1\nName: {adapter}\nVersion: 1.0.0\n")
    said = subprocess.run(
        [sys.executable, "-c", f"import crashproof.adapters.{adapter}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )

    assert 1 == said.returncode
    assert "or later, and 1.0.0 is installed" in said.stderr.splitlines()[-1]
    assert install_line(adapter) in said.stderr.splitlines()[-1]


def test_a_loader_resumes_at_its_position_and_each_epoch_has_each_sample_once():
    def order(loader: ResumableLoader) -> list[float]:
        return [float(value) for batch in loader for value in batch[0][:, 0]]

    whole = ResumableLoader(data(7), batch_size=3, seed=5)
    first, second = order(whole), order(whole)
    resumed = ResumableLoader(data(7), batch_size=3, seed=5)
    resumed.load_state_dict({"position": 3})

    assert 3 == len(whole)
    assert {"position": 14} == whole.state_dict()
    assert sorted(first) == sorted(second)
    assert first != second
    assert first[3:] + second == order(resumed) + order(resumed)


def test_a_loader_draws_nothing_from_the_global_generators():
    before = torch.get_rng_state()
    list(ResumableLoader(data(7), batch_size=3, seed=5))

    assert torch.equal(before, torch.get_rng_state())


def test_the_rest_of_an_epoch_that_was_cut_short_is_skipped():
    loader = ResumableLoader(data(7), batch_size=3, seed=5)
    next(iter(loader))
    loader.sampler.set_epoch(0)
    held = loader.state_dict()
    loader.sampler.set_epoch(1)

    assert {"position": 3} == held
    assert {"position": 7} == loader.state_dict()
