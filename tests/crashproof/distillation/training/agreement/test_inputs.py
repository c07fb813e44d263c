"""Several ranks as threads have read something, and one of them something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from thread_ranks import said_by_two
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.source import Source
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.training.agreement.inputs import InputDigests, require_same_inputs
from crashproof.pytorch.ranks import SingleRank

NOTHING = InputDigests(student=None, teacher=None, held_out=None)


def source(*texts: str) -> Source:
    return Source.generated([{"text": text, "line": number} for number, text in enumerate(texts, 1)])


def compare_inputs(*each: tuple[KdConfig, Source, InputDigests]) -> str:
    return said_by_two(lambda ranks: require_same_inputs(ranks, *each[ranks.rank]))


def compare_sources(one: Source, other: Source) -> str:
    return compare_inputs((KdConfig(), one, NOTHING), (KdConfig(), other, NOTHING))


def test_equal_data_are_accepted() -> None:
    assert "" == compare_sources(source("a", "b"), source("a", "b"))


def test_a_single_process_compares_nothing() -> None:
    class NeverAsked(SingleRank):
        def all_gather(self, value: object, what: str) -> list[object]:  # type: ignore[override]
            raise AssertionError("there is nobody to compare with")

    require_same_inputs(NeverAsked(), KdConfig(), source("a"), NOTHING)


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

    said = compare_inputs((one, source("a"), NOTHING), (other, source("a"), NOTHING))

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
    return compare_inputs(*((config, source("a"), InputDigests.read(config)) for config in configs))


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

    assert NOTHING == InputDigests.read(config)


def test_of_captured_logits_the_manifest_counts(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, content in zip(folders, ("a", "a", "b"), strict=True):
        folder.mkdir()
        (folder / "manifest.json").write_text(content)
        (folder / "beside").write_text(folder.name)
    settings = ["teacher.kind=logits", "loss.intermediate=0"]
    configs = [load_config(KdConfig, [], [*settings, f"teacher.path={folder}"]) for folder in folders]
    one, same, other = ((config, source("a"), InputDigests.read(config)) for config in configs)

    assert "" == compare_inputs(one, same)
    assert "the teacher's manifest: sha256 " in compare_inputs(one, other)


def test_a_held_out_file_is_compared_before_anything_is_made_of_it(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.jsonl", "same.jsonl", "other.jsonl")]
    for file, text in zip(files, ("a", "a", "b"), strict=True):
        file.write_text(json.dumps({"text": text}))
    configs = [load_config(KdConfig, [], [f"data.eval_path={file}"]) for file in files]
    one, same, other = ((config, source("a"), InputDigests.read(config)) for config in configs)

    assert "" == compare_inputs(one, same)
    assert "the held-out data: sha256 " in compare_inputs(one, other)
