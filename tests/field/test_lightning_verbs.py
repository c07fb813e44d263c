"""Every verb of a Lightning `Trainer` with the three parts of the adapter, and steps without a loss."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

from crashproof import RunReader, TrackerSettings
from crashproof.adapters.lightning import Crashproof
from crashproof.errors import ConfigError
from crashproof.records.states import AlertKind

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",
    "ignore:.*does not have many workers",
    "ignore:.*number of training batches",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You defined a `validation_step`",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:You are trying to `self.log",
    "ignore:.*batch_size.*",
    "ignore::UserWarning",
)

QUIET = TrackerSettings(has_heartbeat=False)


class Model(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch[0]).square().mean()
        self.log("part", loss.detach(), batch_size=2)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).square().mean(), batch_size=2)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.layer(batch[0]).square().mean(), batch_size=2)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class TwoNetworks(Model):
    """Manual optimization, as for adversarial networks."""

    returned: Callable[[Tensor], Any] = staticmethod(lambda loss: None)

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for name, optimizer, layer in zip("dg", self.optimizers(), (self.layer, self.other), strict=True):
            loss = layer(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log(f"{name}_loss", loss.detach())
        return type(self).returned(loss.detach())

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(each.parameters(), lr=0.1) for each in (self.layer, self.other)]


class ReturnsADict(TwoNetworks):
    returned = staticmethod(lambda loss: {"d_loss": loss})


class ReturnsALoss(TwoNetworks):
    returned = staticmethod(lambda loss: {"loss": loss})


def loader(num_samples: int = 10, **options: Any) -> DataLoader[Any]:
    """Five batches, by default."""
    samples = torch.linspace(-1, 1, 2 * num_samples).reshape(num_samples, 2)
    return DataLoader(TensorDataset(samples), batch_size=2, **options)


def make(run_dir: Path, *callbacks: Any, **options: Any) -> tuple[Crashproof, Trainer]:
    hold = Crashproof(run_dir, settings=QUIET)
    arguments = {
        "callbacks": [hold.callback, *callbacks],
        "logger": hold.logger,
        "plugins": [hold.checkpoint_io],
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
        "default_root_dir": run_dir.parent,
    }
    return hold, Trainer(**(arguments | options))


def saving(run_dir: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        run_dir, "checkpoint_{step}", auto_insert_metric_name=False, every_n_train_steps=1, save_top_k=-1
    )


def steps(run_dir: Path) -> list[int]:
    reader = RunReader.open(run_dir)
    assert [] == reader.problems()
    return [line.step for line in reader.history()]


def ends(run_dir: Path) -> list[str]:
    return [attempt.how for attempt in RunReader.open(run_dir).session().attempts]


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_a_verb_that_trains_nothing_works_in_a_fresh_program_and_records_nothing(run_dir, verb):
    _, trainer = make(run_dir)

    assert getattr(trainer, verb)(Model(), loader())
    assert not run_dir.exists()


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_a_verb_may_load_a_checkpoint_of_the_run_and_leaves_the_run_as_it_was(run_dir, verb):
    hold, trainer = make(run_dir, saving(run_dir))
    trainer.fit(Model(), loader())
    hold, trainer = make(run_dir)
    before = (run_dir / "progress" / "events.jsonl").read_bytes()
    getattr(trainer, verb)(Model(), loader(), ckpt_path=hold.newest_checkpoint())

    assert before == (run_dir / "progress" / "events.jsonl").read_bytes()


def test_fit_then_every_other_verb_and_a_save_by_hand_in_one_program(run_dir):
    _, trainer = make(run_dir, saving(run_dir))
    model = Model()
    trainer.fit(model, loader(), loader(4))
    trainer.validate(model, loader(4))
    trainer.test(model, loader(4))
    trainer.predict(model, loader(4))
    trainer.save_checkpoint(run_dir / "by_hand.ckpt")

    assert [1, 2, 3, 4, 5] == steps(run_dir)
    assert ["completed"] == ends(run_dir)
    assert ["val_loss"] == list(RunReader.open(run_dir).session().evaluations[-1].results)
    assert (run_dir / "by_hand.ckpt").exists()


def test_two_fits_of_one_trainer_continue_the_run(run_dir):
    hold, trainer = make(run_dir, saving(run_dir))
    model = Model()
    trainer.fit(model, loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader(), ckpt_path=hold.newest_checkpoint())

    assert list(range(1, 11)) == steps(run_dir)
    assert list(range(2, 21, 2)) == [line.samples_processed for line in RunReader.open(run_dir).history()]
    assert ["completed", "completed"] == ends(run_dir)


def test_two_trainers_with_one_hold_continue_the_run(run_dir):
    hold, trainer = make(run_dir, saving(run_dir), max_steps=2)
    trainer.fit(Model(), loader())
    parts = {"callbacks": [hold.callback], "logger": hold.logger, "plugins": [hold.checkpoint_io]}
    _, trainer = make(run_dir, max_steps=4, **parts)
    trainer.fit(Model(), loader(), ckpt_path=hold.newest_checkpoint())

    assert [1, 2, 3, 4] == steps(run_dir)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_steps": 3, "max_epochs": -1}, id="ends-in-mid-epoch"),
        pytest.param({"max_epochs": 1}, id="a-target-in-epochs"),
        pytest.param({"max_epochs": 2}, id="two-epochs"),
        pytest.param({"max_steps": 7, "max_epochs": 2}, id="both"),
    ],
)
def test_a_finished_run_that_was_killed_after_its_last_save_trains_nothing_and_completes(run_dir, options):
    class Dies(ModelCheckpoint):
        """Ends the process life with the last save."""

        def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            super().on_train_batch_end(trainer, *args, **kwargs)
            if trainer.global_step == last:
                raise KeyboardInterrupt

    last = options.get("max_steps") or 5 * options["max_epochs"]
    arguments = {"every_n_train_steps": 1, "save_top_k": -1, "auto_insert_metric_name": False}
    _, trainer = make(run_dir, Dies(run_dir, "checkpoint_{step}", **arguments), **options)
    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        trainer.fit(Model(), loader())
    assert last in RunReader.open(run_dir).session().checkpoints
    for _ in range(2):
        hold, trainer = make(run_dir, saving(run_dir), **options)
        trainer.fit(Model(), loader(), ckpt_path=hold.newest_checkpoint())
        assert last == trainer.global_step

    assert list(range(1, last + 1)) == steps(run_dir)
    assert ["completed", "completed"] == ends(run_dir)[-2:]
    assert last == len(list(RunReader.open(run_dir).all_updates()))


def test_a_target_that_was_lowered_below_the_checkpoint_trains_nothing(run_dir):
    _, trainer = make(run_dir, saving(run_dir), max_steps=4)
    trainer.fit(Model(), loader())
    hold, trainer = make(run_dir, saving(run_dir), max_steps=2)
    trainer.fit(Model(), loader(), ckpt_path=hold.newest_checkpoint())

    assert [1, 2, 3, 4] == steps(run_dir)
    assert "completed" == ends(run_dir)[-1]


def test_a_fast_dev_run_records_nothing_and_disturbs_no_run(run_dir, caplog):
    _, trainer = make(run_dir, saving(run_dir))
    trainer.fit(Model(), loader())
    before = (run_dir / "progress" / "events.jsonl").read_bytes()
    _, trainer = make(run_dir, fast_dev_run=2)
    trainer.fit(Model(), loader(), loader(4))

    assert before == (run_dir / "progress" / "events.jsonl").read_bytes()
    assert 1 == caplog.text.count("fast_dev_run: nothing is recorded")


@pytest.mark.parametrize(
    "options, expected",
    [
        pytest.param({"overfit_batches": 1, "max_epochs": 3}, [1, 2, 3], id="overfit-batches"),
        pytest.param({"limit_train_batches": 2}, [1, 2], id="limit-train-batches"),
        pytest.param({"num_sanity_val_steps": 2, "max_steps": 2}, [1, 2], id="sanity-check"),
        pytest.param({"limit_val_batches": 0, "max_steps": 2}, [1, 2], id="no-validation"),
        pytest.param({"val_check_interval": 2, "max_steps": 4}, [1, 2, 3, 4], id="validation-in-mid-epoch"),
        pytest.param({"logger": False, "max_steps": 2}, [1, 2], id="callback-without-the-logger"),
        pytest.param({"detect_anomaly": True, "max_steps": 2}, [1, 2], id="detect-anomaly"),
    ],
)
def test_a_fit_with_an_option_is_recorded(run_dir, options, expected):
    _, trainer = make(run_dir, **options)
    trainer.fit(Model(), loader(), loader(4))

    assert expected == steps(run_dir)
    assert ["completed"] == ends(run_dir)


def test_no_batch_at_all_opens_no_run(run_dir):
    _, trainer = make(run_dir, limit_train_batches=0)
    trainer.fit(Model(), loader())

    assert not run_dir.exists()


def test_other_loggers_beside_it_work(run_dir, tmp_path):
    hold = Crashproof(run_dir, settings=QUIET)
    _, trainer = make(
        run_dir,
        callbacks=[hold.callback],
        plugins=[hold.checkpoint_io],
        logger=[hold.logger, CSVLogger(tmp_path / "csv")],
        max_steps=2,
    )
    trainer.fit(Model(), loader())

    assert [1, 2] == steps(run_dir)


def test_the_logger_without_the_callback_is_refused_before_the_first_step_of_a_fit_alone(run_dir):
    _, trainer = make(run_dir, callbacks=[], plugins=[])
    trainer.test(Model(), loader())

    class Never(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("a step was taken")

    with pytest.raises(ConfigError, match=r"hold\.logger is used without hold\.callback"):
        trainer.fit(Never(), loader())


def test_the_checkpoint_plugin_alone_writes_and_says_once_that_it_does_not_record(run_dir, caplog):
    hold = Crashproof(run_dir, settings=QUIET)
    _, trainer = make(
        run_dir, callbacks=[saving(run_dir)], logger=False, plugins=[hold.checkpoint_io], enable_checkpointing=True
    )
    with caplog.at_level(logging.WARNING, logger="crashproof"):
        trainer.fit(Model(), loader())

    assert 5 == len(list(run_dir.glob("checkpoint_*.ckpt")))
    assert 1 == caplog.text.count("hold.checkpoint_io is used without hold.callback")


def test_a_tuner_finds_a_learning_rate_and_leaves_no_file_and_no_run(run_dir):
    _, trainer = make(run_dir)
    model = Model()
    Tuner(trainer).lr_find(model, loader(), num_training=5)

    assert not (run_dir / "progress").exists()
    assert [] == list(run_dir.parent.glob(".lr_find*"))

    trainer.fit(model, loader())
    assert [1, 2, 3, 4, 5] == steps(run_dir)


def test_a_learning_rate_finder_in_a_fit_takes_no_step_of_the_run(run_dir):
    _, trainer = make(run_dir, LearningRateFinder(num_training_steps=4))
    trainer.fit(Model(), loader())

    assert [1, 2, 3, 4, 5] == steps(run_dir)
    assert [] == list(run_dir.parent.glob(".lr_find*"))


@pytest.mark.parametrize(
    "model, has_loss",
    [
        pytest.param(TwoNetworks, False, id="nothing-returned"),
        pytest.param(ReturnsADict, False, id="a-mapping-without-loss"),
        pytest.param(ReturnsALoss, True, id="a-mapping-with-a-loss"),
    ],
)
def test_manual_optimization_is_recorded_and_no_loss_raises_no_alert(run_dir, model, has_loss, caplog):
    _, trainer = make(run_dir)
    trainer.fit(model(), loader())

    lines = list(RunReader.open(run_dir).history())
    session = RunReader.open(run_dir).session()
    # Each batch takes two optimizer steps.
    assert [2, 4, 6, 8, 10] == [line.step for line in lines]
    assert 10 == session.total_steps_target
    assert {"d_loss", "g_loss"} == set(lines[0].loss_components)
    assert [not has_loss] * 5 == [bool(line.without_loss) for line in lines]
    assert AlertKind.NON_FINITE not in {alert.kind for alert in session.alerts}
    assert (0 if has_loss else 1) == caplog.text.count("without a loss")


class Skips(Model):
    """As a step that skips a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


def test_a_batch_that_automatic_optimization_skips_costs_no_training(run_dir):
    _, trainer = make(run_dir)
    trainer.fit(Skips(), loader())

    assert "completed" == ends(run_dir)[-1]


class LogsOdd(Model):
    def on_train_epoch_end(self) -> None:
        self.logger.log_metrics({"note": "good", "iou": {"cat": 0.5}, "best": None, "vector": np.array([1.0, 2.0])})


def test_hyperparameters_and_logs_of_any_kind_are_kept_or_named(run_dir, caplog):
    hold, trainer = make(run_dir)
    hold.logger.log_hyperparams({"rate": np.float64(0.5), "where": Path("here"), "mask": np.zeros(2), None: 1})
    hold.logger.log_hyperparams("text")
    trainer.fit(LogsOdd(), loader())

    assert {"iou/cat": 0.5, "vector/0": 1.0, "vector/1": 2.0} == {
        name: value
        for each in RunReader.open(run_dir).session().evaluations
        for name, value in each.results.items()
        if name in ("iou/cat", "vector/0", "vector/1")
    }
    assert 0.5 == RunReader.open(run_dir).session().config["rate"]
    assert "note (str 'good')" in caplog.text


class OfTexts(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(torch.ones(1, 2)).square().mean()


@pytest.mark.parametrize(
    "collate, samples",
    [
        pytest.param(lambda samples: ["text"] * len(samples), 10, id="texts"),
        pytest.param(lambda samples: {"meta": {"id": ["a"] * len(samples)}}, 10, id="nested"),
        pytest.param(lambda samples: 7, 0, id="number"),
    ],
)
def test_a_batch_may_be_anything(run_dir, collate, samples):
    _, trainer = make(run_dir)
    trainer.fit(OfTexts(), loader(collate_fn=collate))

    assert [1, 2, 3, 4, 5] == steps(run_dir)
    assert samples == RunReader.open(run_dir).session().samples_processed
