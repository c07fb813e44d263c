"""Plain words: what DESIGN replaces appears in no text of the sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHAT_PEOPLE_SAY = {"values.py"}
"""Texts of a made-up task, not ours."""
SOURCES = sorted(
    path
    for folder, pattern in (("src", "*.py"), ("src", "*.js"), ("src", "*.html"), ("training", "*.py"))
    for path in (ROOT / folder).rglob(pattern)
    if path.name not in WHAT_PEOPLE_SAY
)

REPLACED = {
    r"good-?bye": "exited without recording a shutdown",
    r"without a word": "exited without recording a shutdown",
    r"\bset aside\b": "quarantined",
    r"\b(?:un)?sealed\b|\bseals?\b": "checksum",
    r"\bglued\b": "merged",
    r"\brotten\b|\brots\b": "corrupt",
    r"\bdoors?\b": "entry point",
    r"\bbeds?\b": "fixture",
    r"\bpatient(?:ly)?\b": "retries and backoff",
    r"\bof no use\b": "unusable",
    r"have an end\b|has an end\b": "completed",
    r"\bno numbers?\b": "not a number, non-finite",
    r"behind the training": "in the background",
    r"\bunbroken\b": "uninterrupted",
    r"three in the morning": "troubleshooting",
    r"it falls: improving": "improving",
    r"lost most to": "largest overhead",
    r"look so often": "refresh interval",
    r"\bwatchers?\b": "monitor",
    r"holdfast": "crashproof",
}
"""What not to write, and what to write instead."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_has_a_word_that_was_replaced(path):
    found = [
        f"line {number}: {match[0]!r}, say {better!r}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for word, better in REPLACED.items()
        if (match := re.search(word, line, re.IGNORECASE))
    ]

    assert [] == found
