"""What a start imports: whoever only reads, checks a config or asks for help does not wait for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof import ProgressTracker

ROOT = Path(__file__).parents[2]

FRAMEWORKS = {"numpy", "pandas", "pyarrow", "safetensors", "starlette", "tokenizers", "torch", "transformers"}
CONFIGS = {"pydantic", "yaml"}
TERMINAL = {"rich", "typer"}
RARE = {"asyncio", "http.client", "pickle", "random", "shutil", "socket", "sqlite3", "statistics", "subprocess"}
"""Of Python's own, what the core needs now and then: some of it takes as long as all of a layer."""
WRITER = {"crashproof.tracking.tracker", "crashproof.tracking.open_run", "crashproof.tracking.context"}
RARE_PARTS = {
    "crashproof.alerts.channels.registry",
    "crashproof.alerts.process_client",
    "crashproof.checkpoints.foreign.formats",
    "crashproof.dashboard",
    "crashproof.teacher",
    "crashproof.views",
}
TRAINERS = ["distill_kd", "distill_process", "distill_answer_generation", "distill_tool_select"]

_REPORT = "\nprint('imported', *sorted(sys.modules.keys() - before))"
"""The last line of a program's output."""


def imported_by(statements: str, *, exit_code: int = 0) -> set[str]:
    """The modules that a fresh process has imported when these statements have ended with an exit code."""
    body = "\n".join(f"    {line}" for line in statements.splitlines())
    program = f"import sys\nbefore = set(sys.modules)\ncode = 0\ntry:\n{body}\n"
    program += f"except SystemExit as end:\n    code = end.code or 0\nassert code == {exit_code}, code" + _REPORT
    # Measuring a process's coverage imports things too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert 0 == completed.returncode, completed.stderr
    return set(completed.stdout.splitlines()[-1].split()[1:])


def command(*words: str) -> str:
    return f"sys.argv = {['crashproof', *words]!r}\nfrom crashproof.cli import main\nmain()"


def trainer(name: str, *words: str) -> str:
    recipe = name.removeprefix("distill_")
    return f"from training.{name} import main\nsys.exit(main({recipe!r}, {list(words)!r}))"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    tracker = ProgressTracker(tmp_path / "run" / "progress", {}, 1)
    tracker.update_metrics(1, 1.0, {}, 0.1, 1, 1)
    tracker.close()
    return tmp_path / "run"


def test_the_package_alone_brings_neither_what_writes_runs_nor_what_reads_them() -> None:
    found = imported_by("import crashproof")

    assert set() == found & (FRAMEWORKS | CONFIGS | TERMINAL | RARE | WRITER | RARE_PARTS)
    assert set() == found & {"crashproof.answers", "crashproof.reading"}


def test_a_tracker_brings_no_framework_and_nothing_that_is_rarely_needed() -> None:
    found = imported_by("from crashproof import ProgressTracker, training_progress_context")

    assert found >= WRITER
    assert set() == found & (FRAMEWORKS | CONFIGS | TERMINAL | RARE | RARE_PARTS)


def test_data_of_the_core_are_structs() -> None:
    program = (
        "from crashproof import ProgressTracker\n"
        "for module in [each for name, each in sys.modules.items() if name.startswith('crashproof')]:\n"
        "    for value in vars(module).values():\n"
        "        if isinstance(value, type) and '__dataclass_fields__' in vars(value):\n"
        "            sys.modules.setdefault('dataclass:' + value.__name__, None)\n"
    )
    found = {name for name in imported_by(program) if name.startswith("dataclass:")}

    # A dataclass takes 30 times as long to define. Of these, users may call `dataclasses.replace`.
    assert {"dataclass:AlertSettings", "dataclass:TrackerSettings", "dataclass:WholeFile"} == found


def test_what_is_imported_at_its_first_use_is_listed_all_the_same() -> None:
    program = "import crashproof\nassert set(crashproof.__all__) <= set(dir(crashproof))"

    assert "crashproof.tracking.tracker" not in imported_by(program)


@pytest.mark.parametrize("words", [["--help"], ["status", "--help"], ["adopt", "--help"]], ids=" ".join)
def test_help_waits_for_no_framework(words: list[str]) -> None:
    found = imported_by(command(*words))

    # pydantic is typer's own.
    assert set() == found & (FRAMEWORKS | {"yaml"} | WRITER | RARE_PARTS)


def test_a_look_at_a_run_imports_nothing_that_writes_one(run_dir: Path) -> None:
    found = imported_by(command("status", str(run_dir)))

    assert set() == found & (FRAMEWORKS | {"yaml"} | WRITER | RARE_PARTS | {"crashproof.answers.run_store"})


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainers_help_waits_for_no_framework(name: str) -> None:
    assert set() == imported_by(trainer(name, "--help")) & (FRAMEWORKS | TERMINAL | WRITER)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    "words",
    [
        ["train.stepz=3"],
        ["train.steps=many"],
        ["nonsense="],
        ["--config", "missing.yaml"],
        ["--resume", "nowhere.pt"],
        ["data.path=missing.jsonl"],
        ["data.eval_path=missing.parquet"],
        ["student.path=nowhere"],
        ["progress.alerts.webhook=env:NO_SUCH_VARIABLE"],
        ["--eval-every", "5"],
    ],
    ids=[
        "an unknown key",
        "a wrong type",
        "a bad override",
        "a missing config",
        "a missing checkpoint",
        "missing data",
        "missing evaluation data",
        "a missing model",
        "a missing variable",
        "nothing to evaluate on",
    ],
)
def test_an_error_in_a_trainers_settings_is_told_before_pytorch_is_imported(
    name: str, words: list[str], tmp_path: Path
) -> None:
    found = imported_by(trainer(name, "--output-dir", str(tmp_path / "out"), *words), exit_code=2)

    assert set() == found & (FRAMEWORKS | TERMINAL | WRITER)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_not_there_is_told_before_pytorch_is_imported(tmp_path: Path) -> None:
    for kind in ("local", "logits"):
        words = [f"teacher.kind={kind}", f"teacher.path={tmp_path / 'none'}", "loss.intermediate=0"]
        found = imported_by(trainer("distill_kd", "--output-dir", str(tmp_path / "out"), *words), exit_code=2)

        assert set() == found & FRAMEWORKS


def test_an_error_in_the_config_of_a_capture_is_told_before_pytorch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {stepz: 3}")
    words = ["capture-logits", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]

    assert set() == imported_by(command(*words), exit_code=2) & FRAMEWORKS


def test_a_folder_of_another_program_is_told_before_pytorch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_5.pt").write_bytes(b"somebody else's")

    assert set() == imported_by(trainer("distill_kd", "--output-dir", str(tmp_path)), exit_code=2) & FRAMEWORKS
