from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof.cli.arguments import run_folders


@pytest.fixture
def runs(train, tmp_path, monkeypatch):
    for name in ("runs/one", "runs/deep/two", "rubbish/three", ".hidden/four"):
        train(tmp_path / name, range(1, 3))
    (tmp_path / "ruins").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "typed, expected",
    [
        pytest.param("", ["rubbish/three", "runs/deep/two", "runs/one"], id="nothing-typed"),
        pytest.param("run", ["runs/deep/two", "runs/one"], id="beginning"),
        pytest.param("runs/o", ["runs/one"], id="below"),
        pytest.param("./runs/o", ["./runs/one"], id="with-a-dot"),
        pytest.param(".hid", [".hidden/four"], id="hidden"),
        pytest.param("missing/", [], id="no-folder"),
        pytest.param("x", [], id="nothing-there"),
    ],
)
def test_folders_that_are_runs_are_offered(runs, typed, expected):
    assert expected == run_folders(typed)


def test_absolute_paths_stay_absolute(runs):
    assert [f"{runs}/runs/one"] == run_folders(f"{runs}/runs/one")


@pytest.mark.parametrize(
    "words, offered",
    [
        pytest.param("crashproof status ru", "runs/one", id="run"),
        pytest.param("crashproof compare runs/one ru", "rubbish/three", id="second-run"),
        pytest.param("crashproof wat", "watch", id="command"),
        pytest.param("crashproof status --js", "--json", id="option"),
    ],
)
def test_a_shell_gets_completions(runs, words, offered):
    program = Path(sys.executable).with_name("crashproof")
    environment = os.environ | {
        "_CRASHPROOF_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }

    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False, cwd=runs)

    assert offered in done.stdout.split()
    assert "" == done.stderr


def test_a_shell_can_be_taught(runs):
    program = Path(sys.executable).with_name("crashproof")

    # Else it looks which shell has started it, and that may be one that completes nothing.
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [program, "--show-completion", "bash"], capture_output=True, text=True, check=False, env=named
    )

    assert "_CRASHPROOF_COMPLETE=complete_bash" in done.stdout
