"""Batches, losses and logs as subclasses of the HF Trainer have them: none ends a training."""

from __future__ import annotations

import logging
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from transformers import BatchEncoding, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from transformers.trainer_utils import HPSearchBackend

from crashproof import RunReader
from crashproof.adapters.batches import num_samples, num_tokens
from crashproof.adapters.transformers import CrashproofCallback
from tests.trainers import Line, make_trainer, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

TOKENS = torch.zeros(3, 7, dtype=torch.long)


@dataclass
class Batch:
    input_ids: torch.Tensor
    names: list[str]


class WithoutLength:
    """As a graph: its size is known to its framework alone."""


class Failing:
    @property
    def shape(self) -> object:
        raise RuntimeError("not yet")


@pytest.mark.parametrize(
    "batch, samples, tokens",
    [
        pytest.param({"input_ids": TOKENS, "labels": TOKENS}, 3, 21, id="mapping"),
        pytest.param(BatchEncoding({"input_ids": TOKENS}), 3, 21, id="encoding-of-a-tokenizer"),
        pytest.param(UserDict(input_ids=TOKENS), 3, 21, id="other-mapping"),
        pytest.param({"scale": torch.tensor(1.0), "x": TOKENS}, 3, 0, id="a-tensor-without-dimensions-first"),
        pytest.param({"input_ids": [[1, 2], [3]]}, 2, 3, id="lists-in-a-mapping"),
        pytest.param({"prompt": ["a", "b"], "meta": None}, 2, 0, id="texts-in-a-mapping"),
        pytest.param({"a": {"input_ids": TOKENS}, "b": {"input_ids": TOKENS}}, 3, 42, id="nested-mappings"),
        pytest.param([{"prompt": "a"}, {"prompt": "b"}], 2, 0, id="list-of-samples"),
        pytest.param([{"input_ids": torch.zeros(4)}, {"input_ids": [1, 2]}], 2, 6, id="list-of-uncollated-samples"),
        pytest.param(["a", "b", "c"], 3, 0, id="list-of-texts"),
        pytest.param([TOKENS, torch.zeros(3)], 3, 0, id="list-of-inputs-and-labels"),
        pytest.param((TOKENS, torch.zeros(3)), 3, 0, id="tuple-of-inputs-and-labels"),
        pytest.param(({"x": TOKENS}, None), 3, 0, id="tuple-of-inputs-and-nothing"),
        pytest.param([torch.zeros(4), torch.zeros(9)], 2, 0, id="list-of-sequences"),
        pytest.param(TOKENS, 3, 0, id="tensor"),
        pytest.param(np.zeros((4, 2)), 4, 0, id="array"),
        pytest.param(Batch(TOKENS, ["a", "b", "c"]), 3, 21, id="dataclass"),
        pytest.param(SimpleNamespace(x=TOKENS), 3, 0, id="namespace"),
        pytest.param({}, 0, 0, id="empty-mapping"),
        pytest.param([], 0, 0, id="empty-list"),
        pytest.param(None, 0, 0, id="none"),
        pytest.param("text", 0, 0, id="text"),
        pytest.param(7, 0, 0, id="number"),
        pytest.param(torch.tensor(1.0), 0, 0, id="tensor-without-dimensions"),
        pytest.param((each for each in [1]), 0, 0, id="generator"),
        pytest.param(WithoutLength(), 0, 0, id="object-without-length"),
        pytest.param(Failing(), 0, 0, id="object-that-fails"),
        pytest.param({"input_ids": None, "x": Failing()}, 0, 0, id="mapping-of-what-fails"),
    ],
)
def test_a_batch_is_counted_or_counts_nothing(batch, samples, tokens):
    assert (samples, tokens) == (num_samples(batch), num_tokens(batch))


def test_a_batch_that_is_a_generator_is_not_consumed():
    batch = (each for each in [1, 2])

    assert 0 == num_samples(batch)
    assert [1, 2] == list(batch)


class OfAnyBatch(Trainer):
    """As trainers that collate by themselves: their collator returns samples, and a step makes the batch."""

    returned: Any = None

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        return None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return model.linear.weight.square().mean()


def as_samples(features: list[Any]) -> Any:
    return features


def as_tuple(features: list[Any]) -> Any:
    return tuple(torch.stack([each[name] for each in features]) for name in ("x", "y"))


def as_texts(features: list[Any]) -> Any:
    return ["sample"] * len(features)


def as_encoding(features: list[Any]) -> Any:
    return BatchEncoding({"input_ids": torch.stack([each["x"] for each in features])})


def as_nothing(features: list[Any]) -> Any:
    return None


def as_object(features: list[Any]) -> Any:
    return WithoutLength()


@pytest.mark.parametrize(
    "collator, samples",
    [(as_samples, 6), (as_tuple, 6), (as_texts, 6), (as_encoding, 6), (as_nothing, 0), (as_object, 0)],
)
def test_a_collator_may_return_anything(tmp_path, collator, samples, caplog):
    with caplog.at_level(logging.WARNING, logger="crashproof"):
        train(tmp_path, max_steps=3, data_collator=collator, trainer_class=OfAnyBatch)

    history = list(RunReader.open(tmp_path).history())
    assert (3, samples) == (history[-1].step, history[-1].samples_processed)
    assert (0 if samples else 1) == caplog.text.count("cannot be counted")


class LogsMore(Trainer):
    """As trainers of preferences and rewards, which log by names of their own."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.log({"reward": np.float32(0.5), "kl": {"mean": torch.tensor(0.25)}, "completion": "good"})
        return loss


def test_what_a_subclass_logs_is_recorded_with_the_step_and_text_is_said_once(tmp_path, caplog):
    train(tmp_path, max_steps=3, trainer_class=LogsMore, save_strategy="no")

    components = [line.loss_components for line in RunReader.open(tmp_path).history()]
    assert [{"reward": 0.5, "kl/mean": 0.25}] * 3 == components
    assert 1 == caplog.text.count("completion (str 'good')")


def test_no_logging_at_all_records_every_step(tmp_path):
    train(tmp_path, max_steps=3, logging_strategy="no", save_strategy="no")

    assert [1, 2, 3] == [line.step for line in RunReader.open(tmp_path).history()]


def odd_metrics(prediction: Any) -> dict[str, Any]:
    return {"iou": np.array([0.25, 0.75]), "note": "good", "best": None, "acc": np.float64(0.5), "n": {"tp": 3}}


def test_an_evaluation_of_odd_results_keeps_its_numbers(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2, save_strategy="no")
    CrashproofCallback(trainer)
    trainer.compute_metrics = odd_metrics
    trainer.train()

    results = RunReader.open(tmp_path).session().evaluations[-1].results
    expected = {"eval_acc": 0.5, "eval_iou/0": 0.25, "eval_iou/1": 0.75, "eval_n/tp": 3.0}
    assert expected == {name: value for name, value in results.items() if name != "eval_loss"}
    assert "eval_note (str 'good')" in caplog.text


def test_verbs_before_between_and_after_trainings_work(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    hold = CrashproofCallback(trainer)
    trainer.log({"by_hand": 1.0})
    before = trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    trainer.train(resume_from_checkpoint=hold.newest_checkpoint())
    trainer.evaluate(metric_key_prefix="valid")
    trainer.log({"by_hand": "text"})
    trainer.save_model(tmp_path / "final")
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=hold.newest_checkpoint())
    trainer.save_state()

    assert "eval_loss" in before
    assert [1, 2, 3, 4] == [line.step for line in RunReader.open(tmp_path).history()]
    assert ["completed", "completed"] == [attempt.how for attempt in RunReader.open(tmp_path).session().attempts]


def test_a_sequence_to_sequence_trainer_is_recorded(tmp_path):
    train(tmp_path, max_steps=2, trainer_class=Seq2SeqTrainer, make_args=Seq2SeqTrainingArguments)

    assert [1, 2] == [line.step for line in RunReader.open(tmp_path).history()]


def test_each_trial_of_a_search_is_a_run_in_its_own_folder(tmp_path):
    pytest.importorskip("ray.tune")
    trainer = make_trainer(tmp_path, max_steps=2, save_steps=2, model_init=Line)
    CrashproofCallback(trainer)
    trainer.hp_search_backend = HPSearchBackend.RAY
    trainer.hp_name = lambda trial: f"lr-{trial['learning_rate']}"
    for _ in range(2):
        for rate in (0.1, 0.2):
            trainer.train(trial={"learning_rate": rate})

    assert not (tmp_path / "progress").exists()
    for rate in (0.1, 0.2):
        reader = RunReader.open(tmp_path / f"lr-{rate}")
        assert [1, 2] == [line.step for line in reader.history()]
        assert [2] == list(reader.session().checkpoints)
        assert rate == reader.session().config["train"]["learning_rate"]
        assert 1 == len(list((tmp_path / f"lr-{rate}" / "progress" / "archive").iterdir()))
