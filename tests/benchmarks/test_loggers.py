"""Each logger of the benchmarks keeps its steps, and its reader finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loggers.choice import CHOICES, Choice
from crashproof.optional_dependencies import is_installed

PROGRAM = """
import json, sys
from pathlib import Path
from benchmarks.loggers.choice import CHOICES
kind = next(each for each in CHOICES if each.name == sys.argv[1]).kind()
folder = Path(sys.argv[2])
logger = kind(folder)
for step in range(1, 8):
    logger.log(step, logger.prepare(step))
logger.close()
(folder / "found.json").write_text(json.dumps(sorted(kind.steps_found(folder))))
"""


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_all_steps_of_a_run_that_ended_well_are_found(choice: Choice, tmp_path: Path) -> None:
    if not is_installed(choice.package):
        pytest.skip(f"needs {choice.package}")

    subprocess.run([sys.executable, "-c", PROGRAM, choice.name, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)

    assert list(range(1, 8)) == json.loads((tmp_path / "found.json").read_text())
