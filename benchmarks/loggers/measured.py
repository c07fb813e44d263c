"""Loggers measured in turn, round by round."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loggers.choice import Choice

__all__ = ["command_of", "lowest", "measure_in_turn", "run_process"]

_LONGEST_SECONDS = 120
_SAID_BYTES = 2000


def measure_in_turn(
    mode: str, choices: Sequence[Choice], work: Path, *, num_rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """What each logger's process finds in each round; a round has all of them, one after the other."""
    rounds: dict[str, list[dict[str, Any]]] = {choice.name: [] for choice in choices}
    for _ in range(num_rounds):
        for choice in choices:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                rounds[choice.name].append(run_process(mode, choice, Path(folder) / "result", [Path(folder)]))
    return rounds


def lowest(rounds: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    """The lowest of all rounds: what else runs on a machine makes a figure only larger."""
    return min(value(each) for each in rounds)


def run_process(mode: str, choice: Choice, result: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """The figures of one process; what it said is shown only if it failed."""
    ended = subprocess.run(
        command_of(mode, choice, result, folders),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_LONGEST_SECONDS,
        check=False,
    )
    if ended.returncode:
        said = ended.stdout[-_SAID_BYTES:].decode(errors="replace")
        raise RuntimeError(f"{choice.title}, {mode}: exit code {ended.returncode}\n{said}")
    figures: dict[str, Any] = json.loads(result.read_text())
    return figures


def command_of(mode: str, choice: Choice, result: Path, folders: Sequence[Path]) -> list[str]:
    """The command line of a logger's process."""
    return [sys.executable, "-m", "benchmarks.loggers.process", mode, choice.name, str(result), *map(str, folders)]
