"""A finished run of the HF Trainer, started again by the same command: nothing is trained, and the end is reached."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from transformers import Trainer, TrainerCallback

from crashproof import RunReader
from tests.trainers import DATA, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class Stream(torch.utils.data.IterableDataset[Any]):
    """Data without a length."""

    def __iter__(self) -> Any:
        return iter(DATA)


class OfAStream(Trainer):
    def __init__(self, model: Any, args: Any, **more: Any) -> None:
        super().__init__(model, args, **(more | {"train_dataset": Stream()}))


class Counts(TrainerCallback):
    """What a Trainer does besides training."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("evaluated")

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("saved")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("ended")


@pytest.mark.parametrize(
    "more, step",
    [
        pytest.param({"max_steps": 8}, 8, id="ends-in-mid-epoch"),
        pytest.param({"max_steps": 10, "save_steps": 5}, 10, id="ends-with-an-epoch"),
        pytest.param({"num_train_epochs": 1.6}, 8, id="a-target-in-parts-of-epochs"),
        pytest.param({"num_train_epochs": 2, "save_steps": 5}, 10, id="a-target-in-epochs"),
        pytest.param({"num_train_epochs": 2, "save_strategy": "epoch"}, 10, id="saved-at-each-epochs-end"),
        pytest.param({"max_steps": 8, "save_strategy": "epoch"}, 8, id="saved-at-the-end-of-a-torn-epoch"),
        pytest.param({"max_steps": 4, "gradient_accumulation_steps": 2}, 4, id="in-mid-accumulation-of-an-epoch"),
        pytest.param({"max_steps": 8, "ignore_data_skip": True}, 8, id="without-skipping-data"),
        pytest.param({"max_steps": 8, "trainer_class": OfAStream}, 8, id="data-without-a-length"),
    ],
)
def test_killed_after_the_last_save_and_started_again_twice(tmp_path, more, step):
    train(tmp_path, killed_after=step, **more)
    weights = (tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes()
    for _ in range(2):
        trainer = train(tmp_path, **more)
        trainer.save_model(tmp_path / "final")
        assert step == trainer.state.global_step

    session = RunReader.open(tmp_path).session()
    assert step == session.steps_completed
    assert weights == (tmp_path / "final" / "model.safetensors").read_bytes()
    assert ["completed", "completed"] == [attempt.how for attempt in session.attempts[-2:]]
    assert [] == RunReader.open(tmp_path).problems()


def test_a_target_that_was_lowered_below_the_checkpoint_trains_nothing(tmp_path):
    train(tmp_path, max_steps=8)
    trainer = train(tmp_path, max_steps=6)

    assert 8 == trainer.state.global_step
    assert list(range(1, 9)) == [line.step for line in RunReader.open(tmp_path).history()]


def test_a_target_that_was_raised_is_trained(tmp_path):
    train(tmp_path, max_steps=8)
    train(tmp_path, max_steps=12)

    assert list(range(1, 13)) == [line.step for line in RunReader.open(tmp_path).history()]


def test_the_evaluation_of_the_epochs_end_that_the_kill_prevented_takes_place(tmp_path):
    train(tmp_path, killed_after=8, max_steps=8, eval_strategy="epoch")
    counts = Counts()
    train(tmp_path, max_steps=8, eval_strategy="epoch", callbacks=[counts])

    assert ["evaluated", "ended"] == counts.seen
    assert 8 == RunReader.open(tmp_path).session().evaluations[-1].step


def test_the_checkpoint_of_a_finished_run_is_not_written_again(tmp_path):
    train(tmp_path, killed_after=8, max_steps=8, save_strategy="epoch", eval_strategy="epoch")
    before = (tmp_path / "checkpoint-8" / "trainer_state.json").stat().st_ino
    counts = Counts()
    train(tmp_path, max_steps=8, save_strategy="epoch", eval_strategy="epoch", callbacks=[counts])

    assert ["evaluated", "ended"] == counts.seen
    assert before == (tmp_path / "checkpoint-8" / "trainer_state.json").stat().st_ino


def test_the_best_model_is_still_loaded_at_the_end(tmp_path):
    more = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    train(tmp_path, killed_after=8, **more)
    trainer = train(tmp_path, **more)
    assert str(tmp_path / "checkpoint-8") == trainer.state.best_model_checkpoint


def test_a_finished_run_whose_last_checkpoint_is_lost_trains_only_the_rest(tmp_path):
    train(tmp_path, killed_after=8, max_steps=8)
    shutil.rmtree(tmp_path / "checkpoint-8")
    trainer = train(tmp_path, max_steps=8)

    assert 8 == trainer.state.global_step
    assert [1, 2, 3, 4, 5, 6, 7, 8] == [line.step for line in RunReader.open(tmp_path).history()]


def test_a_second_training_in_the_same_program_begins_anew(tmp_path):
    trainer = train(tmp_path, max_steps=4)
    train(tmp_path, max_steps=4)
    trainer.train()

    assert 4 == trainer.state.global_step
    assert [1, 2, 3, 4] == [line.step for line in RunReader.open(tmp_path).history()]
