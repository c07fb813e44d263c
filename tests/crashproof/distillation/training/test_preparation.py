from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.recipes.kd import KD, KdConfig
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.text.tokenizer import load_tokenizer
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.errors import ModelMismatch
from crashproof.pytorch.interrupts import Interrupts


@pytest.fixture
def model_folder(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., Path]:
    """A local model with the tokenizer of these tests, changed as asked."""

    def make(name: str, change: Callable[[dict[str, object]], None] = lambda content: None) -> Path:
        folder = tmp_path / name
        make_model().save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    return make


def prepared(tmp_path: Path, *overrides: str) -> Prepared:
    (tmp_path / "data.jsonl").write_text('{"text": "The quick brown fox."}\n' * 3)
    config = load_config(KdConfig, [], [f"data.path={tmp_path / 'data.jsonl'}", "data.max_length=16", *overrides])
    return prepare(KD, config, cache=tmp_path / "cache", interrupts=Interrupts())


def swap_two_tokens(content: dict[str, object]) -> None:
    vocab = content["model"]["vocab"]  # type: ignore[index]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def test_tokenizers_in_which_an_id_means_other_bytes_are_refused_at_the_first_one(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    teacher, student = model_folder("teacher"), model_folder("student", swap_two_tokens)
    first = load_tokenizer(teacher).convert_tokens_to_ids("a")

    with pytest.raises(
        ModelMismatch, match=rf"token {first} is b'a' there and b'b' here\. Distribution losses compare"
    ):
        prepared(tmp_path, "teacher.kind=local", f"teacher.path={teacher}", f"student.path={student}")


def test_tokenizers_that_only_split_otherwise_share_their_tokens(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    def split_nothing(content: dict[str, object]) -> None:
        content["model"]["merges"] = []  # type: ignore[index]

    teacher, student = model_folder("teacher"), model_folder("student", split_nothing)

    made = prepared(tmp_path, "teacher.kind=local", f"teacher.path={teacher}", f"student.path={student}")

    assert load_tokenizer(teacher).encode("The quick brown fox.") == made.tokenizer.encode("The quick brown fox.")


def test_a_teacher_that_is_a_model_needs_no_stored_distributions(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    made = prepared(tmp_path, "teacher.kind=local", f"teacher.path={model_folder('teacher')}")

    assert made.teacher is not None
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())
    assert None is made.data.batch([0]).topk
