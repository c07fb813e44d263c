from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("wandb")

from wandb.proto import wandb_internal_pb2

from crashproof.errors import OtherRun
from crashproof.exporters.replay import replay
from crashproof.exporters.wandb import WandbSink

# The client leaves sockets and a service process to the end of the program.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


BLOCK_BYTES, HEAD_BYTES = 32_768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> list[wandb_internal_pb2.Record]:
    """What an offline file holds: a log as LevelDB writes it, of W&B's own messages."""
    content = file.read_bytes()
    assert content.startswith(b":W&B")
    found, parts, place = [], [], HEAD_BYTES
    while place + HEAD_BYTES <= len(content):
        if BLOCK_BYTES - place % BLOCK_BYTES < HEAD_BYTES:
            place += BLOCK_BYTES - place % BLOCK_BYTES
            continue
        num_bytes, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + HEAD_BYTES : place + HEAD_BYTES + num_bytes])
        place += HEAD_BYTES + num_bytes
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            found.append(record)
            parts = []
    assert not parts
    return found


def complete(file: Path) -> list[wandb_internal_pb2.Record]:
    """The records of a file that is not written any more: W&B's own process may be behind."""
    for _ in range(600):
        try:
            found = records(file)
        except AssertionError:
            found = []
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.05)
    raise AssertionError(f"{file} is not complete")


def offline(folder: Path) -> list[Path]:
    """In the order in which they are uploaded."""
    note = json.loads((folder / "crashproof-wandb.json").read_bytes())
    return [next((folder / "wandb" / name).glob("*.wandb")) for name in note["folders"]]


def points(folder: Path, key: str = "loss") -> list[tuple[int, float | str]]:
    found = []
    for file in offline(folder):
        for record in complete(file):
            if record.WhichOneof("record_type") == "history":
                items = {
                    each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in record.history.item
                }
                value = items.get(key)
                if value is None:
                    continue
                found.append((items["_step"], "NaN" if value == "NaN" or value != value else value))
    return found


def ids(folder: Path) -> set[str]:
    return {
        record.run.run_id
        for file in offline(folder)
        for record in complete(file)
        if record.WhichOneof("record_type") == "run"
    }


def test_wandb_reads_each_step_once_through_kills_and_keeps_nan(train, canonical, tmp_path):
    for attempt in [(1, 60), (41, 80), (81, 100)]:
        run = train(attempt)
        replay(run, WandbSink(tmp_path / "w"))
        assert canonical(run) == points(tmp_path / "w")
    again = replay(run, WandbSink(tmp_path / "w"))

    assert 0 == again.num_added
    assert (13, "NaN") in points(tmp_path / "w")
    # Begun anew once, and gone on with once: two folders of one W&B run, and nothing of the one before.
    assert 2 == len(offline(tmp_path / "w"))
    assert 1 == len(ids(tmp_path / "w"))
    assert sorted(each.parent for each in offline(tmp_path / "w")) == sorted(
        (tmp_path / "w" / "wandb").glob("offline*")
    )


def test_a_folder_that_a_kill_cut_off_is_written_again(train, canonical, tmp_path):
    run = train((1, 30))
    exporter = WandbSink(tmp_path / "w")
    real = exporter.close
    exporter.close = lambda: None  # type: ignore[method-assign]  # Dead before it could say that it is done.
    replay(run, exporter)
    unfinished = json.loads((tmp_path / "w" / "crashproof-wandb.json").read_bytes())["unfinished"]
    exporter._pending = None
    real()
    replay(run, WandbSink(tmp_path / "w"))

    assert unfinished
    assert canonical(run) == points(tmp_path / "w")
    assert 1 == len(list((tmp_path / "w" / "wandb").glob("offline*")))


def test_evaluations_and_step_0_are_there_and_one_that_comes_late_makes_it_begin_anew(
    open_tracker, update, run_dir, tmp_path
):
    tracker = open_tracker()
    for step in range(4):
        update(tracker, step, loss_components={"_step": 0.5, "a\nb": 0.25})
    tracker.record_evaluation(2, {"eval_loss": 0.5, "_runtime": 0.25})
    replay(run_dir, WandbSink(tmp_path / "w"))
    seen = {name: points(tmp_path / "w", name) for name in ("loss", "eval/loss", "eval/_runtime")}
    tracker.record_evaluation(3, {"eval_loss": 0.25})
    late = replay(run_dir, WandbSink(tmp_path / "w"))

    assert {"loss": [(step, 2.0) for step in range(4)], "eval/loss": [(2, 0.5)], "eval/_runtime": [(2, 0.25)]} == seen
    assert (True, 4, 2) == (late.has_begun_anew, late.num_added, late.num_evaluations_added)
    assert [(2, 0.5), (3, 0.25)] == points(tmp_path / "w", "eval/loss")
    assert [(step, 0.5) for step in range(4)] == points(tmp_path / "w", "loss_components/_step")


def test_a_folder_of_another_run_is_refused(train, tmp_path, open_tracker, update):
    replay(train((1, 3)), WandbSink(tmp_path / "w"))
    update(open_tracker(output_dir=tmp_path / "other"), 1)

    with pytest.raises(OtherRun):
        replay(tmp_path / "other", WandbSink(tmp_path / "w"))
