"""Samples that are too long."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from crashproof.data_files.record import Place
from crashproof.errors import DataError

__all__ = ["LengthCensus", "OnTooLong"]

log = logging.getLogger("crashproof")

_MOST_NAMED = 5


class OnTooLong(StrEnum):
    """What happens to a sample with more tokens than `data.max_length`."""

    ERROR = "error"
    SKIP = "skip"
    TRUNCATE = "truncate"


@dataclass(slots=True, kw_only=True)
class LengthCensus:
    """Decides how much of each sample of a source is kept, and counts."""

    max_length: int
    on_too_long: str
    """An `OnTooLong`."""
    num_lines: int = 0
    num_too_long: int = 0
    num_cut: int = 0
    num_split: int = 0
    """Texts that became several samples; nothing of them is lost."""
    first_places: list[tuple[str, str, int]] = field(default_factory=list)
    """The name of the file, the unit and the number of the first few lines that are too long."""
    longest: tuple[str, str, int] | None = None
    """The same of the longest line that is too long."""
    longest_place: Place | None = None
    """Its place, as far as it was counted here; no part of `state`."""
    most_tokens: int = 0
    """Of the longest line that is too long."""
    most_before: int = 0
    """Its tokens before the answer."""

    def tokens_kept(self, place: Place, num_tokens: int, *, num_before: int, fewest: int = 0) -> int:
        """How many of a sample's tokens to keep, from its beginning; 0 leaves it out.

        Args:
            place: Names the sample.
            num_tokens: All of its tokens.
            num_before: Its tokens before the first that is learned.
            fewest: With fewer tokens than these it would teach something wrong.
        """
        self.num_lines += 1
        if num_tokens <= self.max_length:
            return num_tokens
        self._count(place, num_tokens, num_before)
        # The first token is predicted by nothing.
        is_useful = self.max_length > max(1, num_before) and self.max_length >= fewest
        if self.on_too_long != OnTooLong.TRUNCATE or not is_useful:
            return 0
        self.num_cut += 1
        return self.max_length

    def count_text(self, num_tokens: int) -> None:
        """Count a text, which is split where it is too long."""
        self.num_lines += 1
        self.num_split += num_tokens > self.max_length

    def require_usable(self, where: Path) -> None:
        """Refuse what may not be left out or cut, after all samples were counted.

        Raises:
            DataError: Counts and names the lines that are too long.
        """
        if not self.num_too_long:
            return
        if self.on_too_long == OnTooLong.ERROR:
            raise self._refusal(where)
        if self.num_too_long - self.num_cut == self.num_lines:
            raise DataError(
                where,
                f"all of its {self.num_lines:,} lines have more tokens than data.max_length, which is "
                f"{self.max_length:,}, and none of them can be used",
                hint=f"Raise data.max_length; the longest, {self._longest(where)}, has {self.most_tokens:,}.",
            )

    def report(self, where: Path) -> None:
        """Say in the log what was left out, cut or split."""
        if self.num_split:
            texts = f"{self.num_split:,} of {self.num_lines:,} texts"
            log.info("%s: %s have more than %s tokens and are split.", where, texts, f"{self.max_length:,}")
        if not self.num_too_long:
            return
        num_left_out = self.num_too_long - self.num_cut
        fates = [(self.num_cut, "are cut"), (num_left_out, "are left out")]
        log.warning(
            "%s: %s of %s lines have more than %s tokens (data.max_length): %s. The longest, %s, has %s.",
            where,
            f"{self.num_too_long:,}",
            f"{self.num_lines:,}",
            f"{self.max_length:,}",
            " and ".join(f"{num:,} {fate}" for num, fate in fates if num),
            self._longest(where),
            f"{self.most_tokens:,}",
        )

    def state(self) -> dict[str, Any]:
        """What `of` makes the same census of."""
        fields = (each.name for each in dataclasses.fields(self) if each.name != "longest_place")
        return {name: getattr(self, name) for name in fields}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> LengthCensus:
        """The census of a `state`."""
        return cls(**state)

    def _count(self, place: Place, num_tokens: int, num_before: int) -> None:
        self.num_too_long += 1
        named = (place.path.name, place.unit, place.number)
        if len(self.first_places) < _MOST_NAMED:
            self.first_places.append(named)
        if num_tokens > self.most_tokens:
            self.longest, self.longest_place = named, place
            self.most_tokens, self.most_before = num_tokens, num_before

    def _longest(self, where: Path) -> str:
        assert self.longest is not None, "a line is too long"
        return _named(*self.longest, where)

    def _refusal(self, where: Path) -> DataError:
        room = ", which leaves no room for an answer" if self.most_before >= self.max_length else ""
        has = f"{self.most_tokens:,} tokens, {self.most_before:,} of them before the answer"
        hint = (
            f"Raise data.max_length to {self.most_tokens:,} if the models accept that, or set data.on_too_long to "
            "skip or truncate."
        )
        if self.num_too_long == 1:
            problem = f"it has {has}, and data.max_length is {self.max_length:,}{room}"
            assert self.longest_place is not None, "it was counted here"
            return self.longest_place.error(problem, hint=hint)
        others = self.num_too_long - len(self.first_places)
        named = f"{_listed(self.first_places, where)}{f' and {others:,} more' if others else ''}"
        return DataError(
            where,
            f"{self.num_too_long:,} of {self.num_lines:,} lines have more tokens than data.max_length, which is "
            f"{self.max_length:,}: {named}; the longest, "
            f"{self._longest(where)}, has {has}{room}",
            hint=hint,
        )


def _named(file: str, unit: str, number: int, where: Path) -> str:
    """A place; with its file where that is not the one that is named already."""
    return f"{unit} {number}" if file == where.name else f"{unit} {number} of {file}"


def _listed(places: list[tuple[str, str, int]], where: Path) -> str:
    """Places in words, those of a file together."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for file, unit, number in places:
        numbers.setdefault((file, unit), []).append(str(number))
    return ", ".join(
        f"{unit}s {', '.join(each)}{'' if file == where.name else f' of {file}'}"
        for (file, unit), each in numbers.items()
    )
