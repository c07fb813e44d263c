from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from crashproof.disk.lost_records import find_traces
from crashproof.disk.run_folder import RunFolder
from crashproof.records.lines.checksummed_line import add_checksum

BEGINNING = add_checksum(b'{"event":"session_started","v":1}')
LINE = add_checksum(b'{"v":1,"step":1}')


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.under(tmp_path)
    folder.progress.mkdir()
    return folder


def traces(folder: RunFolder, **files: bytes) -> dict[str, str]:
    """What is found among files, given by their stems."""
    for stem, content in files.items():
        ending = ".jsonl" if stem in ("events", "metrics") else ".json"
        (folder.progress / f"{stem}{ending}").write_bytes(content)
    return dict(find_traces(folder))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"events": b"", "metrics": b""},
        {"events": BEGINNING[:-9]},
        {"events": b"\0" * 99, "metrics": b""},
        {"metrics": b'{"v":1,"st'},
        {"events": BEGINNING, "metrics": b"rubbish\n"},
        {"events": b"rubbish\n", "metrics": LINE, "session": LINE},
        {"events": b"rubbish\n", "metrics": LINE, "checkpoints": LINE},
    ],
    ids=[
        "an empty folder",
        "empty journals",
        "a first line cut off",
        "a first line never synced",
        "half a line of metrics",
        "all events",
        "a session file",
        "a manifest",
    ],
)
def test_nothing_is_lost_with(folder: RunFolder, files: dict[str, bytes]) -> None:
    assert {} == traces(folder, **files)


def test_each_file_is_named_with_what_is_wrong_with_it(folder: RunFolder) -> None:
    found = traces(folder, events=b"one\ntwo\n", metrics=LINE, session=b"{}", progress=LINE)
    (folder.progress / "metrics.jsonl.gz").write_bytes(gzip.compress(LINE))
    (folder.progress / "events.jsonl~").mkdir()
    found |= traces(folder)

    assert {
        "progress/events.jsonl": "its checksum does not match",
        "progress/events.jsonl~": "it is not read under this name",
        "progress/metrics.jsonl": "the events that belong to it are lost",
        "progress/metrics.jsonl.gz": "it is compressed (gzip)",
        "progress/progress.json": "it names no checkpoint",
        "progress/session.json": "it is damaged",
    } == found


def test_links_that_lead_nowhere_are_named(folder: RunFolder) -> None:
    folder.metrics.symlink_to("/nowhere")

    assert {"progress/metrics.jsonl": "it is a link that leads nowhere"} == traces(folder)


def test_a_folder_that_does_not_exist_has_no_traces_and_no_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder.under(tmp_path / "none")

    assert ([], []) == (find_traces(folder), folder.own_checkpoints())


def test_own_checkpoints_are_sorted_by_step(tmp_path: Path) -> None:
    for name in ("checkpoint_10.pt", "checkpoint_9.json", "checkpoint_0.pt", "checkpoint-7", "checkpoint_best.pt"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint_100").mkdir()

    names = [each.name for each in RunFolder.under(tmp_path).own_checkpoints()]

    assert ["checkpoint_9.json", "checkpoint_10.pt", "checkpoint_100"] == names
