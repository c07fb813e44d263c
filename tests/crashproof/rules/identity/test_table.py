"""The table of keys that do not count, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crashproof.rules.identity.key_names import KeyPath, normalized, reason_of_key
from crashproof.rules.identity.rows import KeyRow, Reason, SectionRow
from crashproof.rules.identity.table import COUNT_IN_ANY_SECTION, KEYS, SECTIONS

PAGE = Path(__file__).parents[4] / "docs" / "IDENTITY.md"


def code(patterns: str) -> str:
    return " ".join(f"`{each}`".replace("|", r"\|") for each in patterns.split())


def conditions(row: KeyRow) -> str:
    said = ["usual"] if row.is_usual else []
    named = {"in": row.under, "not in": row.not_under, "beside": row.beside, "not beside": row.not_beside}
    named |= {"but not": row.but, "one value is": row.values}
    return "; ".join([*said, *(f"{words} {code(patterns)}" for words, patterns in named.items() if patterns)])


def of_section(row: SectionRow) -> str:
    where = ["usual"] if row.is_usual else ["at the top"] if row.is_top else []
    return f"| {row.reason} | all in {code(row.sections)} | {''.join(where)} |"


def rendered() -> str:
    rows = [f"| {each.reason} | {code(each.keys)} | {conditions(each)} |" for each in KEYS]
    return "\n".join(["| why | keys | only |", "|---|---|---|", *rows, *map(of_section, SECTIONS)])


def test_the_page_shows_the_table():
    assert rendered() in PAGE.read_text(encoding="utf-8")


def test_all_reasons_of_keys_are_on_the_page_or_explained_there():
    explained = {Reason.BATCH, Reason.DEFAULT, Reason.SAME_NAME, Reason.REQUESTED, Reason.PLACE}

    assert set(Reason) == {row.reason for row in (*KEYS, *SECTIONS)} | explained


@pytest.mark.parametrize(
    "key, expected",
    [
        ("train.epochs", Reason.LENGTH),
        ("model.epochs", None),
        ("lora.rank", None),
        ("rank", None),
        ("solver.max_iter", Reason.LENGTH),
        ("solver.steps", None),
        ("progress.anything", Reason.LOGGING),
        ("train.progress", None),
        ("logger.wandb.project", Reason.LOGGING),
        ("validation.split", None),
        ("validation.freq", Reason.EVALUATION),
        ("model.validation.freq", None),
        ("model.deterministic", None),
        ("data_version", None),
        ("resume", Reason.RESUME),
        ("transformers_version", Reason.ORIGIN),
        ("dataset_version", None),
        ("output_dir", Reason.PLACE),
        ("dataset_cache_dir", Reason.PLACE),
        ("dirpath", Reason.PLACE),
        ("pretrained_checkpoint_path", None),
        ("data_dir", None),
        ("output_size", None),
        ("run.name", Reason.NAME),
        ("model.name", None),
        ("lr_scheduler.monitor", None),
        ("backend", None),
        ("", None),
    ],
)
def test_a_key_is_judged_by_its_name_and_by_where_it_stands(key, expected):
    assert expected is reason_of_key(KeyPath.of(key.split(".")), (1, 2), {"epochs"})


def test_a_list_is_no_length():
    assert reason_of_key(KeyPath.of(["train", "steps"]), ([8, 11], [16, 22]), set()) is None


def test_a_rank_beside_a_world_size_is_that_of_a_process():
    assert Reason.PROCESSES is reason_of_key(KeyPath.of(["rank"]), (0, 1), {"rank", "world_size"})


def test_the_number_of_an_entry_is_no_part_of_a_name():
    assert KeyPath(("data", "files"), "path") == KeyPath.of(["data", "files", "0", "path"])
    assert KeyPath(("optimizer",), "lr") == KeyPath.of(["optimizer/lr"])


@pytest.mark.parametrize("name", ["numTrainEpochs", "NUM-TRAIN-EPOCHS", "--num_train_epochs", "Num Train Epochs"])
def test_names_are_alike_in_every_spelling(name):
    assert "num_train_epochs" == normalized(name)


def test_what_counts_in_any_section_is_on_the_page():
    assert code(COUNT_IN_ANY_SECTION) in PAGE.read_text(encoding="utf-8")
