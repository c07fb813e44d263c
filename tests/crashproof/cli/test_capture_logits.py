"""`crashproof capture-logits`, as its users call it, and what a trainer makes of its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crashproof.cli.app import app
from crashproof.distillation.command import main
from crashproof.errors import ConfigError
from crashproof.optional_dependencies import install_line
from crashproof.reading.run_reader import RunReader

CONFIG = """
data: {max_length: 16, on_too_long: truncate}
tokenizer: {vocab_size: 262}
teacher: {steps: 1, d_model: 8, num_heads: 2, num_layers: 1}
student: {d_model: 8, num_heads: 2, num_layers: 1}
train: {steps: 2, batch_size: 2, device: cpu}
"""
STUDENT = ["teacher.kind=logits", "loss.intermediate=0"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    lines = [{"prompt": f"{number}:", "teacher_text": " two and two is four"} for number in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def capture(config: Path, *arguments: str, exit_code: int = 0) -> str:
    given = ["capture-logits", "--config", str(config), *arguments, f"data.path={config.parent / 'data.jsonl'}"]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert exit_code == result.exit_code, result.output
    return result.output


def train(config: Path, *arguments: str) -> int:
    data = f"data.path={config.parent / 'data.jsonl'}"
    return main("kd", [data, *arguments, "--config", str(config), "--output-dir", str(config.parent / "out")])


@pytest.fixture
def logits(config: Path, tmp_path: Path) -> Path:
    """Captured at the config's own temperature."""
    capture(config, "--out", str(tmp_path / "logits"), "--top-k", "8")
    return tmp_path / "logits"


def test_it_says_what_was_captured_and_how_large_it_is(config: Path, tmp_path: Path) -> None:
    said = capture(config, "--out", str(tmp_path / "logits"), "--top-k", "8")

    assert f"{tmp_path / 'logits'} is complete: 8 entries of each of " in said
    assert "bytes per entry." in said


def test_later_files_and_overrides_may_stand_behind_the_first_file(config: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("loss: {temperature: 3.0}\n")

    capture(config, str(more), "data.max_length=12", "--out", str(tmp_path / "logits"))

    manifest = json.loads((tmp_path / "logits" / "manifest.json").read_text())
    assert (3.0, 12) == (manifest["captured_from"]["temperature"], manifest["captured_from"]["max_length"])


@pytest.mark.parametrize("option", ["--top-k", "--temperature", "--shard-tokens", "--batch-size"])
def test_a_setting_of_zero_is_told(config: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option[2:].replace('-', '_')}: .* greater than"):
        capture(config, "--out", str(tmp_path / "logits"), option, "0")


def test_a_student_is_trained_without_its_teacher(config: Path, logits: Path) -> None:
    assert 0 == train(config, *STUDENT, f"teacher.path={logits}")

    lines = list(RunReader.open(config.parent / "out").history())
    assert [("kd", "ce")] * 2 == [tuple(line.loss_components) for line in lines]
    assert not list((config.parent / "out" / "cache").glob("teacher-*"))


def test_captured_logits_are_known_by_their_content_and_not_by_where_they_lie(config: Path, logits: Path) -> None:
    archive = config.parent / "out" / "progress" / "archive"
    assert 0 == train(config, *STUDENT, f"teacher.path={logits}", "--steps", "1")
    moved = logits.rename(config.parent / "moved")

    assert 0 == train(config, *STUDENT, f"teacher.path={moved}")

    assert not archive.exists()
    capture(config, "--out", str(config.parent / "other"), "--top-k", "4")
    assert 0 == train(config, *STUDENT, f"teacher.path={config.parent / 'other'}")
    assert 1 == len(list(archive.iterdir()))


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["loss.intermediate=0.1"], "set loss.intermediate to 0"),
        (["loss.temperature=1"], "Set loss.temperature to 2.0"),
        (["data.max_length=8"], "were captured from other data: sample 1, which has"),
    ],
    ids=["hidden states", "temperature", "data"],
)
def test_what_does_not_fit_is_told_in_one_line_and_nothing_is_begun(
    config: Path, logits: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], words: str
) -> None:
    capsys.readouterr()

    assert 2 == train(config, *STUDENT, f"teacher.path={logits}", *overrides)

    said = capsys.readouterr().err
    assert (1, True) == (said.count("\n"), words in said)
    assert not (config.parent / "out" / "progress").exists()


def test_a_flipped_bit_is_refused_by_the_shards_name(
    config: Path, logits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = logits / "shard-000000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    assert 2 == train(config, *STUDENT, f"teacher.path={logits}")

    assert f"{shard}: its bytes differ from those that were captured" in capsys.readouterr().err


def test_the_command_line_starts_without_pytorch() -> None:
    program = "import sys, crashproof.cli.app\nprint({'torch', 'transformers', 'pydantic'} & sys.modules.keys())"

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "set()\n" == said.stdout


def test_without_the_distillation_extra_it_says_how_to_get_it(tmp_path: Path) -> None:
    program = "import sys\nsys.modules['transformers'] = None\nfrom crashproof.cli import main\nmain()"
    arguments = ["capture-logits", "--config", "c.yaml", "--out", str(tmp_path / "logits")]

    said = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)

    assert (2, True) == (said.returncode, install_line("distillation") in said.stderr)
    assert not (tmp_path / "logits").exists()
