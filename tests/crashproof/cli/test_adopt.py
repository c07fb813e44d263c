from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_checkpoints import write_archive, write_hugging_face
from typer.testing import CliRunner

from crashproof.cli.app import app
from crashproof.errors import NothingToAdopt

runner = CliRunner()


def adopt(*arguments: str, exit_code: int = 0) -> str:
    result = runner.invoke(app, ["adopt", *arguments], catch_exceptions=False)
    assert exit_code == result.exit_code, result.output
    return result.output


@pytest.fixture
def old(run_dir: Path) -> Path:
    """A file with checksums, one without, and a folder of a Trainer."""
    write_archive(run_dir / "checkpoint_1000.pt")
    (run_dir / "checkpoint_2000.pt").write_bytes(pickle.dumps({"weights": 1.0}))
    write_hugging_face(run_dir, 3000)
    return run_dir


def test_it_reports_what_was_adopted_and_where_a_start_resumes(old: Path) -> None:
    output = adopt(str(old), "--samples-per-step", "256")

    assert "  step 1,000: checkpoint_1000.pt (" in output
    assert "checkpoint_2000.pt: no checksum inside, only the size was checked" in output
    assert f"{old}: 3 checkpoints adopted, 0 already known, 0 torn." in output
    assert f"The next start in {old} resumes from checkpoint-3000." in output
    assert "unknown" not in output


def test_it_reports_that_the_position_in_the_data_is_unknown(old: Path) -> None:
    assert "Their position in the data is unknown" in adopt(str(old))


def test_a_second_time_adds_nothing(old: Path) -> None:
    adopt(str(old))

    assert "0 checkpoints adopted, 3 already known, 0 torn." in adopt(str(old))


def test_some_torn_ones_are_named_and_are_exit_code_1(old: Path) -> None:
    (old / "checkpoint-3000" / "model.safetensors").unlink()

    output = adopt(str(old), exit_code=1)

    assert "  step 3,000: checkpoint-3000: it has no weights" in output
    assert "; skipped" in output
    assert "resumes from checkpoint_2000.pt" in output


def test_in_json_it_is_one_object(old: Path) -> None:
    (old / "checkpoint_4000.pt").write_bytes(b"")

    answer = json.loads(adopt(str(old), "--json", exit_code=1))

    assert [1000, 2000, 3000] == [each["checkpoint_step"] for each in answer["adopted"]]
    assert [{"step": 4000, "path": "checkpoint_4000.pt", "reason": "it is empty"}] == answer["torn"]
    assert (0, False, str(old / "checkpoint-3000")) == tuple(
        answer[name] for name in ("known_before", "is_position_known", "resume")
    )
    assert ["checkpoint_2000.pt"] == answer["unchecked"]["checkpoint_2000.pt"]


def test_where_nothing_can_be_adopted_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NothingToAdopt):
        adopt(str(tmp_path / "nowhere"))

    done = subprocess.run(
        [sys.executable, "-c", "from crashproof.cli import main; main()", "adopt", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 2 == done.returncode
    assert done.stderr.startswith(
        f"crashproof: {tmp_path} has no checkpoint to adopt: nothing in it is named like one"
    )
    assert 1 == done.stderr.count("\n")


def test_it_imports_no_framework(old: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from crashproof.cli.app import app; "
        "CliRunner().invoke(app, ['adopt', sys.argv[1]], catch_exceptions=False); "
        "print(sorted({'torch', 'safetensors', 'numpy'} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code, str(old)], capture_output=True, text=True, check=True)

    assert "[]\n" == done.stdout
