from __future__ import annotations

from pathlib import Path

import pytest

from crashproof.disk.run_folder import RunFolder
from crashproof.reading.discovery import RunSearch, find_runs, path_outside


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

    search = RunSearch(tmp_path / "inside")

    assert [] == names(tmp_path / "inside")
    assert [
        ("fake/progress", "a link that leads out of the served folder"),
        ("link", "a link that leads out of the served folder"),
    ] == [(each.name, each.reason) for each in search.skipped]


def test_links_out_of_the_folder_are_followed_on_request_and_each_run_is_found_once(tmp_path, begin):
    begin("outside/a")
    begin("inside/own")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "again").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(tmp_path)
    (tmp_path / "outside" / "loop").symlink_to(tmp_path / "outside")

    search = RunSearch(tmp_path / "inside", follows_links=True)

    assert (2, []) == (len(search.runs), search.skipped)
    assert "own" in search.runs
    assert {"a", "own"} == {run.root.name for run in search.runs.values()}


def test_a_progress_folder_elsewhere_is_read_on_request(tmp_path, begin):
    begin("outside/a")
    (tmp_path / "inside" / "run").mkdir(parents=True)
    (tmp_path / "inside" / "run" / "progress").symlink_to(tmp_path / "outside" / "a" / "progress")

    assert ["run"] == list(RunSearch(tmp_path / "inside", follows_links=True).runs)


def test_a_link_inside_the_folder_is_found_where_it_leads_and_not_reported(tmp_path, begin):
    begin("a")
    (tmp_path / "latest").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").symlink_to(tmp_path / "a" / "progress" / "events.jsonl")

    search = RunSearch(tmp_path)

    assert (["a"], []) == (list(search.runs), search.skipped)


def test_a_folder_that_is_served_through_a_link_is_its_own_boundary(tmp_path, begin):
    begin("real/a")
    (tmp_path / "link").symlink_to("real")

    search = RunSearch(tmp_path / "link")

    assert (["a"], tmp_path / "real", []) == (list(search.runs), search.boundary, search.skipped)


@pytest.mark.parametrize("file", ["events.jsonl", "metrics.jsonl", "session.json", "writer.lock", "curves.jsonl"])
def test_a_file_of_a_run_that_lies_outside_is_found(tmp_path, begin, file):
    begin("inside/a").close()
    run = RunFolder.under(tmp_path / "inside" / "a")
    before = path_outside(run, tmp_path / "inside")
    (tmp_path / "secret").write_bytes(b"")
    (run.progress / file).unlink(missing_ok=True)
    (run.progress / file).symlink_to(tmp_path / "secret")

    assert (None, run.progress / file) == (before, path_outside(run, tmp_path / "inside"))


def test_runs_too_deep_or_hidden_are_skipped(tmp_path, begin):
    begin("1/2/3")
    begin(".hidden/a")

    assert ([], ["1/2/3"]) == (names(tmp_path, deepest=2), names(tmp_path, deepest=3))


def test_a_missing_folder_has_no_runs(tmp_path):
    assert [] == names(tmp_path / "nowhere")
