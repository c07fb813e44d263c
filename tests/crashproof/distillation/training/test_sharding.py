"""Sharding at loading, on a single rank: what several do together is in tests/field/test_sharded_models.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.models.making import WHOLE_MODELS, DeferredModels, ModelMaker
from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.loop import new_state
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.distillation.training.sharding import shard_models
from crashproof.errors import ConfigError
from crashproof.pytorch.checkpoint_file import save_checkpoint
from crashproof.pytorch.device import choose_device
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import SingleRank
from tests.model_folders import SIZES, WITHOUT_A_TEACHER, edit_json, save

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TwoRanks(SingleRank):
    """As one of them sees it: the other reports something of its own."""

    def __init__(self, other: object, *, is_main: bool) -> None:
        super().__init__()
        self.is_main = is_main
        self._other = other

    def all_gather(self, value: Any, what: str) -> list[Any]:
        return [value, self._other] if self.is_main else [self._other, value]


@pytest.fixture
def prepared(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., Prepared]:
    """A run without memory for its models; by default they come from folders."""
    folder = save(make_model(), tokenizer, tmp_path / "model")

    def make(*overrides: str, models: ModelMaker | None = None) -> Prepared:
        (tmp_path / "data.jsonl").write_text('{"text": "The quick brown fox."}\n' * 3)
        words = [f"data.path={tmp_path / 'data.jsonl'}", "data.max_length=16", f"student.path={folder}"]
        words += ["teacher.kind=local", f"teacher.path={folder}", "loss.intermediate=0", *overrides]
        config = load_config(KdConfig, [], words)
        models = models or DeferredModels()
        return prepare(
            KD, config, read_lessons(KD, config), cache=tmp_path / "cache", interrupts=Interrupts(), models=models
        )

    return make


def shard(made: Prepared, ranks: SingleRank) -> None:
    assert made.weights is not None
    shard_models(made.recipe, ranks, CPU, made.weights)


def test_models_without_memory_are_examined_once_they_are_filled(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    assert made.recipe.teacher is not None
    before = [made.recipe.split.is_split, made.recipe.teacher.is_split]

    shard(made, SingleRank())

    assert [False, False] == before
    assert [True, True] == [made.recipe.split.is_split, made.recipe.teacher.is_split]
    assert not any(each.is_meta for each in made.recipe.parameters())
    losses = made.recipe(made.data.batch([0]))
    # Teacher and student are the same.
    assert losses["kd"].item() == pytest.approx(0.0, abs=1e-5)


def test_what_was_gathered_for_that_does_not_outlive_it(prepared: Callable[..., Prepared]) -> None:
    """Or a checkpoint that is restored then would not count at the first step."""
    made = prepared()

    shard(made, SingleRank())

    assert {DTensor} == {type(each) for each in made.recipe.parameters()}
    with torch.no_grad():
        for parameter in made.recipe.parameters():
            parameter.to_local().zero_()
    uniform = math.log(made.recipe.student.config.vocab_size)
    costs = made.recipe.cross_entropies(made.data.batch([0]))
    assert torch.allclose(torch.tensor(uniform), costs)


def test_an_encoder_is_refused_once_it_can_compute(
    prepared: Callable[..., Prepared], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = save(BertForMaskedLM(BertConfig(**SIZES)), tokenizer, tmp_path / "bert")
    edit_json(folder / "config.json", architectures=None)
    made = prepared(f"student.path={folder}", *WITHOUT_A_TEACHER)

    with pytest.raises(ConfigError, match="holds an encoder"):
        shard(made, SingleRank())


def test_a_rank_that_cannot_read_its_part_is_named_by_the_main_one(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    failure = ("w cannot be read from model.safetensors (gone).", "Copy the folder again.")

    with pytest.raises(ConfigError, match=r"Rank 1: w cannot be read from model.safetensors \(gone\)\. Copy the"):
        shard(made, TwoRanks(failure, is_main=True))


def test_the_others_end_without_a_word(prepared: Callable[..., Prepared]) -> None:
    made = prepared()

    with pytest.raises(SystemExit, match="2"):
        shard(made, TwoRanks(("w cannot be read", ""), is_main=False))


def test_the_file_of_one_process_is_restored_into_shards(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    train, cpu = TrainConfig(), choose_device("cpu")
    whole = new_state(prepared(models=WHOLE_MODELS).recipe, train, cpu, SingleRank())
    with torch.no_grad():
        for parameter in whole.module.parameters():
            parameter.add_(1.0)
    whole.counters.step = 7
    content = {**whole.shared_values(), "tensors": whole.tensors(), "own": whole.own_values()}
    save_checkpoint(tmp_path / "checkpoint_7.pt", content)
    made = prepared()
    shard(made, SingleRank())
    sharded = new_state(made.recipe, train, cpu, SingleRank())

    sharded.restore(tmp_path / "checkpoint_7.pt")

    assert 7 == sharded.counters.step
    expected = dict(whole.module.named_parameters())
    for name, parameter in sharded.module.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(expected[name], parameter.full_tensor())
