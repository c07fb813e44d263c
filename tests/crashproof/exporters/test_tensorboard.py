from __future__ import annotations

import builtins
import re
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from crashproof.errors import MissingExtra, OtherRun
from crashproof.exporters.replay import replay
from crashproof.exporters.tensorboard import TensorBoardSink
from crashproof.optional_dependencies import install_line


def comparable(value: float) -> float | str:
    return "NaN" if value != value else value


def points(folder: Path, tag: str = "loss") -> list[tuple[int, float | str]]:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return [(each.step, comparable(each.value)) for each in reader.Scalars(tag)]


def test_tensorboard_reads_each_step_once_and_keeps_nan(train, canonical, tmp_path):
    run = train((1, 120))

    replay(run, TensorBoardSink(tmp_path / "logs"))

    assert canonical(run) == points(tmp_path / "logs")
    assert (13, "NaN") in points(tmp_path / "logs")
    assert 120 == len(points(tmp_path / "logs", "loss_components/kd"))
    assert 120 == len(points(tmp_path / "logs", "learning_rate"))


@pytest.mark.parametrize("again", [(121, 200), (81, 200), (1, 50)], ids=["goes-on", "went-back", "from-the-start"])
def test_after_a_resume_no_curve_is_doubled(train, canonical, tmp_path, again):
    run = train((1, 120))
    replay(run, TensorBoardSink(tmp_path / "logs"))
    train(again)
    replay(run, TensorBoardSink(tmp_path / "logs"))
    replay(run, TensorBoardSink(tmp_path / "logs"))

    assert canonical(run) == points(tmp_path / "logs")


def test_a_loop_that_counts_from_0_has_not_gone_back(train, canonical, tmp_path):
    for attempt in [(0, 20), (21, 40)]:
        run = train(attempt)
        assert not replay(run, TensorBoardSink(tmp_path / "logs")).has_begun_anew
        assert canonical(run) == points(tmp_path / "logs")


def test_a_running_tensorboard_drops_superseded_steps(train, canonical, tmp_path):
    run = train((1, 120))
    replay(run, TensorBoardSink(tmp_path / "logs"))
    reader = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0})
    reader.Reload()
    (file,) = (tmp_path / "logs").glob("events*")
    records = list(EventFileLoader(str(file)).Load())

    assert 120 == len(reader.Scalars("loss"))
    assert ("brain.Event:2", 1) == (records[0].file_version, records[1].session_log.status)


def test_what_a_kill_left_behind_the_note_is_cut_off(train, canonical, tmp_path):
    run = train((1, 50))
    replay(run, TensorBoardSink(tmp_path / "logs"))
    (file,) = (tmp_path / "logs").glob("events*")
    whole = file.read_bytes()
    train((51, 80))
    replay(run, TensorBoardSink(tmp_path / "logs"))
    longer = file.read_bytes()
    note = tmp_path / "logs" / "crashproof.json"
    after = note.read_bytes()
    for cut in (len(whole) + 1, len(longer) - 3):
        # The process died between the events and the note.
        file.write_bytes(longer[:cut])
        note.write_bytes(after.replace(b'"last_step":80', b'"last_step":80'))
        replay(run, TensorBoardSink(tmp_path / "logs"))
        assert canonical(run) == points(tmp_path / "logs")


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(train, tmp_path, open_tracker, update):
    replay(train((1, 10)), TensorBoardSink(tmp_path / "logs"))
    before = {path: path.read_bytes() for path in (tmp_path / "logs").iterdir()}
    update(open_tracker(output_dir=tmp_path / "other"), 1)

    with pytest.raises(OtherRun, match="already holds another run"):
        replay(tmp_path / "other", TensorBoardSink(tmp_path / "logs"))

    assert before == {path: path.read_bytes() for path in (tmp_path / "logs").iterdir()}


def test_events_of_other_writers_beside_it_are_left_alone(train, canonical, tmp_path):
    (tmp_path / "logs").mkdir()
    own = tmp_path / "logs" / "events.out.tfevents.1.somebody"
    own.write_bytes(b"")

    replay(train((1, 10)), TensorBoardSink(tmp_path / "logs"))

    assert b"" == own.read_bytes()


def test_without_tensorboard_the_error_has_the_install_command(monkeypatch, tmp_path):
    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest: real("no_such_module") if name.startswith("tensorboard") else real(name, *rest),
    )

    with pytest.raises(MissingExtra, match=re.escape(install_line("tensorboard"))):
        TensorBoardSink(tmp_path)
