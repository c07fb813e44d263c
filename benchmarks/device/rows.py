"""What a device check found."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Row", "Verdict", "found_or_failed"]


class Verdict(StrEnum):
    """How a row is to be read."""

    HOLDS = "holds"
    FAILS = "FAILS"
    MEASURED = "measured"
    """A figure; nothing is required of it here."""
    NOT_HERE = "not here"
    """It cannot be checked on this device, or with what is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    verdict: Verdict
    why: str = ""
    """What failed, what is missing and how to get it, or what a figure means."""
    values: Mapping[str, float] = field(default_factory=dict)
    """The figure as numbers, by name with their unit, for programs."""

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Row:
        """What `as_json` made."""
        return cls(**{**content, "verdict": Verdict(content["verdict"])})


def found_or_failed(what: str, find: Callable[[], Row]) -> Row:
    """What is found, or a row that says why nothing was: the other rows of a check shall come."""
    try:
        return find()
    except Exception as error:  # A library or a driver may raise anything.
        traceback.print_exc()
        reason = (str(error).splitlines() or [""])[0]
        return Row(what=what, figure="", verdict=Verdict.FAILS, why=f"{type(error).__name__}: {reason}")
