"""A newcomer's path: the wheel as it is built, an empty folder, and every command of the tutorial.

Run with `-s` to see what each of them says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "TUTORIAL.md"
BLOCK = re.compile(
    r"(?:<!-- file: (?P<file>[\w.]+) -->\n)?^```(?P<kind>sh|python)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL
)
MOST_BYTES = 1_000_000

# It installs and trains for more than a minute; `make crash` runs it.
pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Installed:
    """A wheel and the folder it is installed in, away from the sources."""

    wheel: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes programs find it before anything else."""
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    built = ["wheel", str(ROOT), "--no-build-isolation", "--wheel-dir", str(place / "dist")]
    subprocess.run([*pip, *built, *offline], check=True)
    (wheel,) = (place / "dist").glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(place / "site"), str(wheel)], check=True)
    return Installed(wheel, place / "site")


def run(installed: Installed, folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=installed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.timeout(600)
def test_every_command_of_the_tutorial_does_what_it_says(installed: Installed, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    said = ""
    for block in BLOCK.finditer(TUTORIAL.read_text()):
        if block["kind"] == "python":
            (tmp_path / block["file"]).write_text(block["content"])
            continue
        done = run(installed, tmp_path, ["bash", "-e", "-c", block["content"]])
        print(f"$ {block['content']}{done.stdout}")
        assert 0 == done.returncode, f"{block['content']}\n{done.stdout}"
        said += done.stdout

    assert "runs/second: crashed: the process exited without recording a shutdown" in said
    assert "exit code 5: crashed" in said
    assert "Resuming at step 10 (checkpoint_10.pt" in said
    assert "the same weights" in said
    assert f"The weight is {10.0 * 0.9**60:.6}"[:22] in said
    assert "Starting at step 21." in said
    assert "is whole: 3 checkpoints and all journals." in said
    assert "checkpoint-30" in said
    assert "saved by the store" in said
    assert (tmp_path / "second-doctor.html").read_text().startswith("<!doctype html>")


def test_the_wheel_has_all_that_it_needs_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = wheel.namelist()
    num_bytes = installed.wheel.stat().st_size
    print(f"{installed.wheel.name}: {num_bytes:,} bytes, {len(names)} files")

    assert {"crashproof", "training", next(name.split("/")[0] for name in names if ".dist-info" in name)} == {
        name.split("/")[0] for name in names
    }
    assert {
        "crashproof/py.typed",
        "crashproof/dashboard/page/index.html",
        "crashproof/dashboard/page/uplot/LICENSE",
        "crashproof/dashboard/page/uplot/uPlot.iife.min.js",
        "training/distill_kd.py",
    } <= set(names)
    assert [] == [name for name in names if "test_" in name or "__pycache__" in name]
    assert num_bytes < MOST_BYTES


def test_the_core_alone_imports_no_framework(installed: Installed, tmp_path: Path) -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'lightning', 'accelerate', 'pandas', 'polars', 'starlette', 'rich'}"
    program = (
        "import sys, time; begun = time.perf_counter(); import crashproof\n"
        "print(f'import crashproof: {(time.perf_counter() - begun) * 1000:.0f} ms, {len(sys.modules)} modules')\n"
        f"print(sorted({heavy} & sys.modules.keys()), crashproof.__file__)"
    )

    done = run(installed, tmp_path, [sys.executable, "-c", program])

    print(done.stdout)
    assert 0 == done.returncode, done.stdout
    assert f"[] {installed.folder}/crashproof/__init__.py" in done.stdout
