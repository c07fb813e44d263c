from __future__ import annotations

from pathlib import Path

import pytest

from crashproof.reading.discovery import find_runs


def names(root: Path, **given: int) -> list[str]:
    return [name for name, _ in find_runs(root, **given)]


@pytest.fixture
def begin(tmp_path, open_tracker):
    return lambda name: open_tracker(output_dir=tmp_path / name)


def test_runs_are_found_at_any_depth_and_sorted_by_path(tmp_path, begin):
    for name in ("b", "a/deep/run", "a/other", "<script>"):
        begin(name)

    assert ["<script>", "a/deep/run", "a/other", "b"] == names(tmp_path)


def test_a_folder_that_is_a_run_itself_is_found_as_such(tmp_path, begin):
    begin("a")

    assert ["."] == names(tmp_path / "a")


def test_a_run_is_not_searched_for_more_runs(tmp_path, begin):
    begin("a")
    begin("a/checkpoint_1/inner")

    assert ["a"] == names(tmp_path)


def test_no_link_leads_out_of_the_folder(tmp_path, begin):
    begin("outside/a")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "fake").mkdir()
    (tmp_path / "inside" / "fake" / "progress").symlink_to(tmp_path / "outside" / "a" / "progress")

    assert [] == names(tmp_path / "inside")


def test_runs_too_deep_or_hidden_are_skipped(tmp_path, begin):
    begin("1/2/3")
    begin(".hidden/a")

    assert ([], ["1/2/3"]) == (names(tmp_path, deepest=2), names(tmp_path, deepest=3))


def test_a_missing_folder_has_no_runs(tmp_path):
    assert [] == names(tmp_path / "nowhere")
