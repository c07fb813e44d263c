"""What tests of commands need: the command line as a shell sees it, and a run to look at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crashproof.cli.app import run


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    code: int
    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


@pytest.fixture
def crashproof(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command line in this process, errors and exit codes included."""
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments: str | Path) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["crashproof", *map(str, arguments)])
        try:
            run()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        output = capsys.readouterr()
        return Said(code=code, output=output.out, errors=output.err)

    return invoke


@pytest.fixture
def train(open_tracker: Callable[..., Any], update: Callable[..., None]) -> Callable[..., Path]:
    """A run of some steps, closed; the loss of step n is 5 - n / 10 unless told otherwise."""

    def trained(output_dir: Path, steps: range, *, losses: dict[int, float] | None = None, **given: Any) -> Path:
        tracker = open_tracker(output_dir=output_dir, **given)
        for step in steps:
            update(tracker, step, loss=(losses or {}).get(step, 5.0 - step / 10))
        tracker.close()
        return output_dir

    return trained
