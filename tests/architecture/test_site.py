"""The documents build as a site without a warning, and each of them is in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html"]

    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert {path.with_suffix(".html").name for path in DOCS.glob("*.md")} <= {
        path.name for path in (tmp_path / "site").glob("*.html")
    }
    assert "resumed.png" in (tmp_path / "site" / "WATCHING.html").read_text()


def test_every_document_is_in_the_table_of_contents():
    listed = set(re.findall(r"^[A-Z_]+$", (DOCS / "index.md").read_text(), re.MULTILINE))

    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} == listed
