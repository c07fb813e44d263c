"""Counts of what was read, left out and changed."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from crashproof.data_files.record import Place
from crashproof.errors import DataError
from crashproof.samples.problems import LeftOut

__all__ = ["Tally"]

log = logging.getLogger("crashproof")


@dataclass(slots=True, kw_only=True)
class _Reason:
    hint: str
    first: Place
    num: int = 0


@dataclass(slots=True)
class Tally:
    """What became of the records of some files."""

    where: str
    """What is counted, such as the path."""
    forms: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, _Reason] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    """Files without a record."""

    def num_read(self) -> int:
        """Records so far, those that are left out among them."""
        return self.forms.total() + sum(reason.num for reason in self.left_out.values())

    def leave_out(self, problem: LeftOut, place: Place) -> None:
        """Count a record that is not learned."""
        self.left_out.setdefault(problem.reason, _Reason(hint=problem.hint, first=place)).num += 1

    def sentences(self) -> list[str]:
        """Why records are left out, most frequent first."""
        num_all = self.num_read()
        ordered = sorted(self.left_out.items(), key=lambda each: -each[1].num)
        return [
            f"{reason.num:,} of {num_all:,} are left out because {why} (the first: {reason.first.path}, "
            f"{reason.first.unit} {reason.first.number}). {reason.hint}"
            for why, reason in ordered
        ]

    def nothing_left(self) -> DataError | None:
        """The error where all records are left out; None if there are none."""
        if not self.left_out:
            return None
        why, reason = next(iter(self.left_out.items()))
        num_others = self.num_read() - 1
        others = f"; the other {num_others:,} are left out as well, and nothing remains" if num_others else ""
        return reason.first.error(f"{why}{others}", hint=reason.hint)

    def report(self) -> None:
        """Log the counts, each once."""
        forms = ", ".join(f"{num:,} {name}" for name, num in self.forms.most_common())
        log.info("%s: %s.", self.where, forms)
        for note, num in self.notes.most_common():
            log.warning("%s: in %s: %s.", self.where, f"{num:,} of {self.forms.total():,}", note)
        if self.empty:
            log.warning("%s: empty files: %s.", self.where, ", ".join(self.empty))
        for sentence in self.sentences():
            log.warning("%s: %s", self.where, sentence)
