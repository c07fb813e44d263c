"""`python -m training.distill_kd`, as its users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof import RunReader
from crashproof.disk.lock import WriterLock
from crashproof.distillation.command import main as library_main
from training.distill_kd import main

MINIMAL = """
model: {vocab_size: 32000, d_model: 128}
train: {batch_size: 2, steps: 10}
progress: {checkpoint_interval: 5}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said, in one line, to arguments that cannot be used."""
    assert 2 == main("kd", list(arguments))
    said = capsys.readouterr().err
    assert 1 == said.count("\n")
    return said


def test_the_entry_point_is_the_librarys_own() -> None:
    assert main is library_main


def test_the_minimal_config_runs_as_it_stands_and_a_second_start_reports_that_it_is_complete(
    config: Path, tmp_path: Path
) -> None:
    # Only the teacher's own training is shortened; it is cached once in a run's life.
    command = [sys.executable, "-m", "training.distill_kd", "--config", str(config), "teacher.steps=2"]
    command += ["--output-dir", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)

    again = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})

    summary = json.loads((tmp_path / "out" / "progress" / "progress.json").read_text())
    assert (100.0, 10) == (summary["progress_pct"], summary["steps_completed"])
    manifest = json.loads((tmp_path / "out" / "progress" / "checkpoints.json").read_text())
    assert ["5", "10"] == list(manifest["checkpoints"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "progress" / "metrics.jsonl").read_text().splitlines()]
    assert {("kd", "ce", "intermediate")} == {tuple(line["loss_components"]) for line in lines}
    assert "Nothing is left to train: 10 of 10 steps are done." in again.stderr
    assert (tmp_path / "out" / "student_10" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["train.stepz=3"], "did you mean train.steps?"),
        (["model.d_modle=3"], "did you mean model.d_model?"),
        (["train.steps=0"], "train.steps"),
        (["--steps", "0"], "train.steps"),
        (["loss.temperature=-1"], "loss.temperature"),
        (["data.path=missing.jsonl"], "missing.jsonl: it cannot be read"),
        (["student.path=nowhere", "model="], "both student and model"),
        (["--resume", "nowhere.pt"], "nowhere.pt cannot be used: there is no such file"),
    ],
    ids=[
        "typo",
        "typo in model",
        "no steps",
        "no steps told",
        "bad value",
        "no data",
        "two students",
        "no checkpoint",
    ],
)
def test_bad_input_is_a_one_line_error_and_nothing_is_started(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], words: str
) -> None:
    said = refused(capsys, "--config", str(config), "--output-dir", str(tmp_path / "out"), *overrides)

    assert words in said
    assert not (tmp_path / "out" / "progress").exists()


def test_a_config_that_is_no_mapping_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")

    said = refused(capsys, "--config", str(tmp_path / "list.yaml"), "--output-dir", str(tmp_path / "out"))

    assert f"{tmp_path / 'list.yaml'} must be a mapping" in said


def test_a_malformed_data_line_names_file_and_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "fine"}\n{"prompt": "half"}\n')

    said = refused(capsys, "--config", str(config), "--output-dir", str(tmp_path / "out"), f"data.path={data}")

    assert f"{data}, line 2:" in said


def test_an_empty_data_set_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.jsonl").write_text("\n")
    arguments = ["--config", str(config), "--output-dir", str(tmp_path / "out")]

    assert "contains no samples" in refused(capsys, *arguments, f"data.path={tmp_path / 'data.jsonl'}")


def test_checkpoints_of_an_unknown_run_are_not_written_over(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint_5.pt").write_bytes(b"somebody else's")

    said = refused(capsys, "--config", str(config), "--output-dir", str(tmp_path / "out"))

    assert "of a run that crashproof does not know" in said
    assert b"somebody else's" == (tmp_path / "out" / "checkpoint_5.pt").read_bytes()


def test_a_second_process_does_not_touch_a_cache_that_is_being_filled(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "cache").mkdir(parents=True)
    first = WriterLock(tmp_path / "out" / "cache" / "writer.lock")

    said = refused(capsys, "--config", str(config), "--output-dir", str(tmp_path / "out"))

    assert f"{tmp_path / 'out'} is being written by process {os.getpid()}" in said
    first.release()


def test_an_output_folder_that_is_a_file_is_an_error(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file")

    said = refused(capsys, "--config", str(config), "--output-dir", str(tmp_path / "out"))

    assert f"{tmp_path / 'out'} is a file, not a folder" in said
    assert "a file" == (tmp_path / "out").read_text()


SMALL = [
    "data.max_length=16",
    "data.on_too_long=truncate",
    "tokenizer.vocab_size=300",
    "teacher.steps=1",
    "teacher.d_model=16",
    "teacher.num_heads=2",
    "teacher.num_layers=1",
    "student.d_model=16",
    "student.num_heads=2",
    "train.warmup_steps=2",
    "progress.checkpoint_interval=100",
]


def test_a_longer_run_keeps_the_horizon_of_its_first_start_though_no_checkpoint_was_saved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*SMALL, "--output-dir", str(out)]
    assert 0 == main("kd", [*arguments, "--steps", "4"])
    first = learning_rates(out)
    # As a kill before the first checkpoint leaves it: steps in the journal, nothing to resume from.
    events = out / "progress" / "events.jsonl"
    kept = [line for line in events.read_bytes().splitlines(keepends=True) if b'"checkpoint_recorded"' not in line]
    events.write_bytes(b"".join(kept))
    for name in ("session.json", "checkpoints.json"):
        (out / "progress" / name).unlink()
    (out / "checkpoint_4.pt").unlink()

    assert 0 == main("kd", [*arguments, "--steps", "6"])

    again = learning_rates(out)
    assert first + [first[-1]] * 2 == again


def test_a_teacher_is_known_by_its_content_and_not_by_where_it_lies(tmp_path: Path) -> None:
    assert 0 == main("kd", [*SMALL, "--output-dir", str(tmp_path / "teaches"), "--steps", "1"])
    teacher = tmp_path / "teaches" / "student_1"
    small = [each for each in SMALL if not each.startswith(("teacher.", "student."))]
    arguments = [*small, "student.d_model=16", "student.num_heads=2", "--output-dir", str(tmp_path / "out")]
    archive = tmp_path / "out" / "progress" / "archive"
    local = ["teacher.kind=local", f"teacher.path={teacher}"]
    assert 0 == main("kd", [*arguments, *local, "--steps", "1"])

    moved = teacher.rename(tmp_path / "moved")
    assert 0 == main("kd", [*arguments, "teacher.kind=local", f"teacher.path={moved}", "--steps", "2"])
    assert not archive.exists()
    (moved / "extra.json").write_text("{}")
    assert 0 == main("kd", [*arguments, "teacher.kind=local", f"teacher.path={moved}", "--steps", "2"])

    assert 1 == len(list(archive.iterdir()))


def learning_rates(output_dir: Path) -> list[float]:
    """Of the canonical history."""
    return [line.learning_rate for line in RunReader.open(output_dir).history()]
