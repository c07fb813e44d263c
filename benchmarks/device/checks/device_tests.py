"""The tests that need a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.device.rows import Row, Verdict
from benchmarks.device.running import ROOT
from benchmarks.device.sizes import Size

__all__ = ["check"]

_MARK = "pytest.mark.device"


def check(size: Size, work: Path) -> Iterator[Row]:
    """Every test with the mark `device`, in the files that have one."""
    tests = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if _MARK in path.read_text()]
    report = work / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "device", "-p", "no:cacheprovider", f"--junitxml={report}"]
    ended = subprocess.run([*command, f"--basetemp={work / 'tmp'}", *map(str, tests)], cwd=ROOT, check=False)
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {ended.returncode}")
    for case in ElementTree.parse(report).iter("testcase"):
        yield _row(case)


def _row(case: ElementTree.Element) -> Row:
    name = case.get("name", "").removeprefix("test_").replace("_", " ")
    failure = next((each for kind in ("failure", "error") for each in case.findall(kind)), None)
    skipped = case.find("skipped")
    if failure is not None:
        return Row(what=name, figure="", verdict=Verdict.FAILS, why=_first_line(failure))
    if skipped is not None:
        return Row(what=name, figure="", verdict=Verdict.NOT_HERE, why=_first_line(skipped))
    return Row(what=name, figure="passed", verdict=Verdict.HOLDS)


def _first_line(element: ElementTree.Element) -> str:
    return element.get("message", "").split("\n", maxsplit=1)[0]
