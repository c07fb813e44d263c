"""Several ranks as threads have prepared something, and one of them something else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from thread_ranks import said_by_two

from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.training.agreement.preparation import require_same_preparation
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import SingleRank


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., tuple[KdConfig, Prepared]]:
    def make(*settings: str) -> tuple[KdConfig, Prepared]:
        lines = [{"text": f"The quick brown fox number {number}."} for number in range(8)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        small = [f"{model}.{key}" for model in ("student", "teacher") for key in ("d_model=16", "num_heads=2")]
        of_data = [f"data.path={tmp_path / 'data.jsonl'}", "data.max_length=16", "data.held_out=0.25"]
        overrides = [*of_data, "teacher.steps=1", "tokenizer.vocab_size=262", *small, *settings]
        config = load_config(KdConfig, [], overrides)
        lessons = read_lessons(KD, config)
        return config, prepare(KD, config, lessons, cache=tmp_path / "cache", interrupts=Interrupts())

    return make


def compare_prepared(*each: tuple[KdConfig, Prepared]) -> str:
    return said_by_two(lambda ranks: require_same_preparation(ranks, *each[ranks.rank]))


def test_the_same_preparation_is_accepted(prepared: Callable[..., tuple[KdConfig, Prepared]]) -> None:
    one = prepared()

    assert "" == compare_prepared(one, prepared())
    require_same_preparation(SingleRank(), *one)


def test_other_tokens_and_weights_are_named(
    prepared: Callable[..., tuple[KdConfig, Prepared]],
) -> None:
    config, one = prepared()
    _, other = prepared()
    assert other.teacher is not None
    with torch.no_grad():
        for model in (other.recipe, other.teacher):
            next(model.parameters()).view(-1)[0] += 1
    other = dataclasses.replace(other, data=one.held_out_data, held_out_data=None, held_out=None)

    said = compare_prepared((config, one), (config, other))

    assert "do not have the same tokens and first weights: the held-out data: 2 samples (sha256 " in said
    for words in ("the tokens", "the held-out tokens", "the built-in teacher's weights", "the first weights of what"):
        assert f"; {words}" in said


def test_another_tokenizer_and_template_are_named(prepared: Callable[..., tuple[KdConfig, Prepared]]) -> None:
    config, one = prepared()
    _, other = prepared("tokenizer.vocab_size=261")
    other.tokenizer.chat_template = "{{ messages }}"
    other.tokenizer.pad_token = "a"

    said = compare_prepared((config, one), (config, other))

    for words in ("the tokenizer: sha256", "the chat template: sha256", "the tokens for end and padding: 1 and 0 on"):
        assert words in said


def test_weights_that_are_not_in_memory_yet_are_not_digested(
    prepared: Callable[..., tuple[KdConfig, Prepared]],
) -> None:
    config, one = prepared()
    on_meta = dataclasses.replace(one, recipe=one.recipe.to("meta"))

    assert "" == compare_prepared((config, on_meta), (config, on_meta))
