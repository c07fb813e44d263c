from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.text.tokenizer import load_tokenizer
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.errors import ModelMismatch
from crashproof.pytorch.interrupts import Interrupts


@pytest.fixture
def model_folder(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., Path]:
    """A local model with the tokenizer of these tests, changed as asked."""

    def make(
        name: str, change: Callable[[dict[str, object]], None] = lambda content: None, size: int | None = None
    ) -> Path:
        folder = tmp_path / name
        make_model(vocab_size=size).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        if "<|end|>" not in content["model"]["vocab"]:
            settings = folder / "tokenizer_config.json"
            settings.write_text(settings.read_text().replace("<|end|>", "<|fin|>"))
        return folder

    return make


def prepared(tmp_path: Path, *overrides: str) -> Prepared:
    (tmp_path / "data.jsonl").write_text('{"text": "The quick brown fox."}\n' * 3)
    config = load_config(KdConfig, [], [f"data.path={tmp_path / 'data.jsonl'}", "data.max_length=16", *overrides])
    return prepare(KD, config, read_lessons(KD, config), cache=tmp_path / "cache", interrupts=Interrupts())


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


def add_token(name: str) -> Callable[[dict[str, object]], None]:
    def change(content: dict[str, object]) -> None:
        added = content["added_tokens"]
        new = {"id": 270, "content": name, "special": True}
        added.append(added[-1] | new)  # type: ignore[attr-defined, index]

    return change


def rename_end(content: dict[str, object]) -> None:
    for added in content["added_tokens"]:  # type: ignore[attr-defined]
        if added["content"] == "<|end|>":
            added["content"] = "<|fin|>"
    vocab = content["model"]["vocab"]  # type: ignore[index]
    vocab["<|fin|>"] = vocab.pop("<|end|>")


SHARED = "teacher.shared_tokens_only=true"


@pytest.mark.parametrize(
    "change, said",
    [
        pytest.param(rename_end, "the special token <|end|> there and the special token <|fin|> here", id="renamed"),
        pytest.param(add_token("<|tool|>"), "token 270 is nothing there and the special token <|tool|>", id="extra"),
    ],
)
def test_tokenizers_that_differ_in_one_token_need_an_option_that_says_what_it_leaves_out(
    model_folder: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, object]], None],
    said: str,
) -> None:
    teacher, student = model_folder("teacher", size=280), model_folder("student", change, size=280)
    paths = ("teacher.kind=local", f"teacher.path={teacher}", f"student.path={student}")

    with pytest.raises(ModelMismatch, match=r"set teacher.shared_tokens_only to true to leave out 1 of"):
        prepared(tmp_path, *paths)
    made = prepared(tmp_path, *paths, SHARED)

    assert said in caplog.text
    assert load_tokenizer(student).get_vocab() == made.tokenizer.get_vocab()
    losses = made.recipe(made.data.batch([0]))
    # Both were made with the same weights, so there is nothing to learn but the text.
    assert losses["kd"].item() == pytest.approx(0.0, abs=1e-5)


def test_too_many_different_tokens_are_refused_in_spite_of_the_option(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    def reverse(content: dict[str, object]) -> None:
        vocab = content["model"]["vocab"]  # type: ignore[index]
        names = [name for name in vocab if len(name) == 1]
        ids = [vocab[name] for name in names]
        vocab.update(zip(names, reversed(ids), strict=True))
        content["model"]["merges"] = []  # type: ignore[index]

    teacher, student = model_folder("teacher"), model_folder("student", reverse)

    with pytest.raises(ModelMismatch, match=r"token ids are shared, and .* and [\d,]+ more"):
        prepared(tmp_path, "teacher.kind=local", f"teacher.path={teacher}", f"student.path={student}", SHARED)


def test_a_token_that_the_teachers_model_has_no_place_for_is_named(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    teacher, student = model_folder("teacher"), model_folder("student", add_token("fox"), size=280)

    with pytest.raises(ModelMismatch, match=r"token 270 \(fox\) 3 time\(s\)"):
        prepared(tmp_path, "teacher.kind=local", f"teacher.path={teacher}", f"student.path={student}", SHARED)
