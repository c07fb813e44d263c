from __future__ import annotations

import html.parser
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from proved_program import BUGS, PROGRAM, with_bug
from typer.testing import CliRunner

from crashproof.cli.app import app


def run(tmp_path: Path, program: str, *options: str):
    script = tmp_path / "train.py"
    script.write_text(program)
    command = [sys.executable, str(script), "{output_dir}"]
    return CliRunner().invoke(app, ["prove", "--kills", "1", *options, "--", *command])


def test_an_exact_command_is_certified(tmp_path):
    said = run(tmp_path, PROGRAM, "--report", str(tmp_path / "report"), "--json")

    assert 0 == said.exit_code
    printed = json.loads(said.stdout)
    assert printed == json.loads((tmp_path / "report" / "certificate.json").read_text())
    assert ("exact", None, "{output_dir}") == (printed["verdict"], printed["problem"], printed["command"][-1])
    assert {"python", "system", "crashproof"} <= printed["versions"].keys()
    assert 64 == len(printed["digest"])
    assert printed["checkpoints"]
    assert "Training uninterrupted, 2 of 2." in said.stderr


def test_a_command_that_is_not_exact_is_told_where_and_why(tmp_path):
    bug = next(each for each in BUGS if each.cause == "optimizer_not_restored")
    said = run(tmp_path, with_bug(bug), "--report", str(tmp_path / "report"))

    assert 1 == said.exit_code
    assert "Does not resume exactly." == said.stdout.splitlines()[0]
    assert "after resume 1: the optimizer's state is not restored" in said.stdout
    page = (tmp_path / "report" / "certificate.html").read_text()
    assert "the optimizer&#x27;s state is not restored" in page
    assert [] == external_parts(page)


@pytest.mark.parametrize(
    "program, headline",
    [
        ("print('the last line')", "Nothing can be proved of this command."),
        (
            PROGRAM.replace("random.seed(7)", "random.seed()"),
            "Not deterministic: nothing can be said of its resumes.",
        ),
    ],
)
def test_what_cannot_be_proved_has_a_code_of_its_own(program, headline, tmp_path):
    said = run(tmp_path, program)

    assert (3, headline) == (said.exit_code, said.stdout.splitlines()[0])


def test_the_runs_of_a_proof_may_be_kept(tmp_path):
    kept = tmp_path / "kept"
    run(tmp_path, PROGRAM, "--scratch", str(kept))

    assert {"control-1", "control-2", "killed"} <= {path.name for path in kept.iterdir()}
    assert (kept / "start-3-killed-1" / "output.log").exists()


def test_a_request_to_end_leaves_nothing_behind(tmp_path, monkeypatch):
    script, temporary = tmp_path / "train.py", tmp_path / "temporary"
    temporary.mkdir()
    script.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path)!r}, 'started').write_text(str(os.getpid()))\n"
        "time.sleep(300)\n"
    )
    monkeypatch.setenv("TMPDIR", str(temporary))
    program = [sys.executable, "-c", "from crashproof.cli import main; main()"]
    proof = subprocess.Popen([*program, "prove", "--", sys.executable, str(script), "{output_dir}"])
    started = tmp_path / "started"
    while not (started.exists() and started.read_text()):
        time.sleep(0.01)
    child = psutil.Process(int(started.read_text()))
    proof.terminate()

    assert 128 + signal.SIGTERM == proof.wait(30)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
    assert [] == list(temporary.iterdir())


def external_parts(page: str) -> list[str]:
    """What a page would load from elsewhere."""
    found = []

    class Finder(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.extend(f"{tag} {name}" for name, _ in attributes if name in {"href", "src"})

    Finder().feed(page)
    return found
