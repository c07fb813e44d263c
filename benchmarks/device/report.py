"""The table of all device checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.device.rows import Row, Verdict

__all__ = ["Report"]

_INTRODUCTION = """\
# What only a GPU shows

Written by `make gpu`: every check in a process of its own with a time limit, one after the other."""
_INTRODUCTION_CPU = """\
# The device checks on a CPU

Written by `DEVICE=cpu make gpu`: the same code, as small as it can be, checks side by side. No time and no size here
says anything about a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was found."""

    device: str
    """`cuda` or `cpu`."""
    facts: Mapping[str, str]
    """Machine, versions and commit."""
    date: str
    seconds: float
    rows: Mapping[str, Sequence[Row]]
    """By check."""

    @property
    def has_failed(self) -> bool:
        """Whether any row fails."""
        return any(row.verdict is Verdict.FAILS for rows in self.rows.values() for row in rows)

    def markdown(self) -> str:
        """As a document."""
        lines = [_INTRODUCTION if self.device == "cuda" else _INTRODUCTION_CPU, ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += [f"- date: {self.date}", f"- all of it took {self.seconds:.0f} s", ""]
        lines += ["| check | what | found | | |", "|---|---|---:|---|---|"]
        for check, rows in self.rows.items():
            name = check.replace("_", " ")
            lines += [f"| {name} | {row.what} | {row.figure} | {row.verdict} | {_cell(row.why)} |" for row in rows]
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """For programs."""
        content = {
            "device": self.device,
            "facts": dict(self.facts),
            "date": self.date,
            "seconds": round(self.seconds, 1),
            "failed": self.has_failed,
            "checks": {check: [row.as_json() for row in rows] for check, rows in self.rows.items()},
        }
        return json.dumps(content, indent=2) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
