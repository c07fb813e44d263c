"""Look a key up in the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from msgspec import Struct

from crashproof.patterns import LazyPattern
from crashproof.rules.identity.rows import KeyRow, Reason, SectionRow
from crashproof.rules.identity.table import (
    COUNT_IN_ANY_SECTION,
    KEYS,
    PLACE_NOUNS,
    PLACES_OF_INPUTS,
    PLACES_OF_OUTPUTS,
    PLACES_OF_OUTPUTS_ALWAYS,
    SECTIONS,
    USUAL_WORDS,
)

__all__ = ["KeyPath", "matches", "normalized", "reason_of_key"]

_HUMP = LazyPattern(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = LazyPattern(r"[^a-z0-9]+")
_PARTS = LazyPattern(r"[./]")


class KeyPath(Struct, frozen=True):
    """A key with its sections, each part in lower case with underscores."""

    sections: tuple[str, ...]
    """From the outside in, without the numbers of entries in a list."""
    last: str

    @classmethod
    def of(cls, parts: Sequence[str]) -> KeyPath:
        """Of the parts of a dotted key; a part may itself be dotted, or have slashes."""
        split = [each for part in parts for each in _PARTS.split(part)]
        names = [normalized(each) for each in split]
        named = [each for each in names if each and not each.isdigit()]
        return cls(tuple(named[:-1]), named[-1] if named else "")

    @property
    def is_usual(self) -> bool:
        """Whether it stands at the top, or in sections that are usual for a training."""
        return all(USUAL_WORDS.issuperset(each.split("_")) for each in self.sections)


@lru_cache(maxsize=4096)
def normalized(name: str) -> str:
    """`numTrainEpochs`, `NUM-TRAIN-EPOCHS` and `--num_train_epochs` are all `num_train_epochs`."""
    return _SEPARATORS.sub("_", _HUMP.sub("_", name).lower()).strip("_")


@lru_cache(maxsize=256)
def _pattern(patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{each.replace('*', '.*')})" for each in patterns.split()))


def matches(patterns: str, text: str) -> bool:
    """Whether a text is one of some patterns, which are separated by blanks."""
    return _pattern(patterns).fullmatch(text) is not None


def reason_of_key(key: KeyPath, values: Iterable[object], all_keys: Iterable[str]) -> Reason | None:
    """Why a key with its two values does not count; None if it counts.

    `all_keys` are the last parts of all keys of both configs.
    """
    for row in SECTIONS:
        if _is_in_section(row, key) and not matches(COUNT_IN_ANY_SECTION, key.last):
            return row.reason
    for each in KEYS:
        if matches(each.keys, key.last) and _applies(each, key, values, all_keys):
            return each.reason
    return Reason.PLACE if _is_output_place(key.last) else None


def _is_in_section(row: SectionRow, key: KeyPath) -> bool:
    path = (*key.sections, key.last)
    if row.is_top:
        return matches(row.sections, path[0])
    place = next((at for at, each in enumerate(key.sections) if matches(row.sections, each)), None)
    return place is not None and (not row.is_usual or KeyPath(key.sections[:place], "").is_usual)


def _applies(row: KeyRow, key: KeyPath, values: Iterable[object], all_keys: Iterable[str]) -> bool:
    """Whether a row that names a key means it where it stands."""
    if row.is_usual and not key.is_usual:
        return False
    if row.reason is Reason.LENGTH and any(isinstance(each, list) for each in values):
        return False
    if row.under and not (key.sections and matches(row.under, key.sections[-1])):
        return False
    if row.but and matches(row.but, key.last):
        return False
    if row.not_under and _has(key.sections, row.not_under):
        return False
    if row.beside and not _has(all_keys, row.beside):
        return False
    if row.not_beside and _has(all_keys, row.not_beside):
        return False
    return not row.values or _has((str(each).lower() for each in values), row.values)


def _has(names: Iterable[str], patterns: str) -> bool:
    return any(matches(patterns, each) for each in names)


def _is_output_place(name: str) -> bool:
    words = name.split("_")
    if name in ("dirpath", "outdir"):
        return True
    if words[-1] not in PLACE_NOUNS:
        return False
    is_output = PLACES_OF_OUTPUTS_ALWAYS if PLACES_OF_INPUTS.intersection(words) else PLACES_OF_OUTPUTS
    return not is_output.isdisjoint(words)
