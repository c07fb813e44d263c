"""Several ranks as threads have read and prepared something, and one of them something else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from thread_ranks import ThreadRanks, ranks_in_threads
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.source import Source
from crashproof.distillation.recipes.kd import KD, KdConfig
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.training.agreement.contents import (
    ModelDigests,
    require_same_inputs,
    require_same_preparation,
)
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.errors import RanksDisagree
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import SingleRank

NO_MODELS = ModelDigests(student=None, teacher=None)


def run(compare: Callable[[ThreadRanks], None]) -> str:
    """What both of two ranks say; nothing if they agree."""

    def outcome(ranks: ThreadRanks) -> str:
        try:
            compare(ranks)
        except RanksDisagree as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        said = set(pool.map(outcome, ranks_in_threads(2)))
    assert 1 == len(said)
    return said.pop()


def source(*texts: str) -> Source:
    return Source.generated([{"text": text, "line": number} for number, text in enumerate(texts, 1)])


def compare_inputs(*each: tuple[KdConfig, Source, ModelDigests]) -> str:
    return run(lambda ranks: require_same_inputs(ranks, *each[ranks.rank]))


def compare_sources(one: Source, other: Source) -> str:
    return compare_inputs((KdConfig(), one, NO_MODELS), (KdConfig(), other, NO_MODELS))


def test_equal_data_are_accepted() -> None:
    assert "" == compare_sources(source("a", "b"), source("a", "b"))


def test_a_single_process_compares_nothing() -> None:
    class NeverAsked(SingleRank):
        def all_gather(self, value: object, what: str) -> list[object]:  # type: ignore[override]
            raise AssertionError("there is nobody to compare with")

    require_same_inputs(NeverAsked(), KdConfig(), source("a"), NO_MODELS)


def test_data_in_another_order_are_refused_and_said_to_be_the_same() -> None:
    said = compare_sources(source("a", "b", "c"), source("c", "a", "b"))

    assert "do not have the same files: the data: 3 samples (sha256 " in said
    assert "The samples are the same, in another order. Give all hosts the same files" in said


@pytest.mark.parametrize(
    "other", [source("a", "b"), source("a", "b", "d"), source("a", "b", "b")], ids=["fewer", "other", "twice"]
)
def test_other_data_are_refused_and_not_said_to_be_the_same(other: Source) -> None:
    said = compare_sources(source("a", "b", "c"), other)

    assert "the data: 3 samples (sha256 " in said
    assert "another order" not in said


def test_what_data_and_models_decide_in_the_config_is_compared() -> None:
    one, other = (KdConfig(data={"max_length": length}) for length in (128, 64))

    said = compare_inputs((one, source("a"), NO_MODELS), (other, source("a"), NO_MODELS))

    assert "data.max_length: 128 on rank 0, 64 on rank 1" in said


@pytest.fixture
def model_folder(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    folder = tmp_path / "model"
    make_model().save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def compare_folders(one: Path, other: Path) -> str:
    configs = [load_config(KdConfig, [], [f"student.path={path}"]) for path in (one, other)]
    return compare_inputs(*((config, source("a"), ModelDigests.read(config)) for config in configs))


def copy(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("copy")))


def test_a_copy_of_a_folder_with_what_no_loader_reads_is_accepted(model_folder: Path) -> None:
    other = copy(model_folder)
    (other / "README.md").write_text("A model.")
    (other / ".cache").mkdir()
    (other / ".cache" / "config.json.metadata").write_text("1795483505.845")

    assert "" == compare_folders(model_folder, other)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_another_file_of_a_folder_is_named(model_folder: Path, name: str) -> None:
    other = copy(model_folder)
    with (other / name).open("ab") as file:
        file.write(b" ")

    said = compare_folders(model_folder, other)

    assert f"the student's {name}: " in said
    assert said.count("sha256") == 2


def test_a_file_that_one_host_lacks_is_named(model_folder: Path) -> None:
    other = copy(model_folder)
    (other / "generation_config.json").unlink()

    assert "the student's generation_config.json: " in compare_folders(model_folder, other)
    assert "(absent) on rank 1" in compare_folders(model_folder, other)


def test_a_missing_folder_is_left_to_whoever_loads_it(tmp_path: Path) -> None:
    config = load_config(KdConfig, [], ["teacher.kind=logits", "loss.intermediate=0", f"teacher.path={tmp_path}"])

    assert NO_MODELS == ModelDigests.read(config)


def test_of_captured_logits_the_manifest_counts(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, content in zip(folders, ("a", "a", "b"), strict=True):
        folder.mkdir()
        (folder / "manifest.json").write_text(content)
        (folder / "beside").write_text(folder.name)
    settings = ["teacher.kind=logits", "loss.intermediate=0"]
    configs = [load_config(KdConfig, [], [*settings, f"teacher.path={folder}"]) for folder in folders]
    one, same, other = ((config, source("a"), ModelDigests.read(config)) for config in configs)

    assert "" == compare_inputs(one, same)
    assert "the teacher's manifest: sha256 " in compare_inputs(one, other)


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
    return run(lambda ranks: require_same_preparation(ranks, *each[ranks.rank]))


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
