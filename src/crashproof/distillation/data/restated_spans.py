"""Values of tool results that an answer restates."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["restated_spans"]

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_SHORTEST_TEXT = 3
"""Minimum letters of a complete value that counts by itself: `is` and `a` are everywhere."""


class _Word(NamedTuple):
    normal: str
    """Normalized form, by which words are compared."""
    start: int
    end: int


def restated_spans(answer: str, results: Sequence[str], *, min_words: int) -> list[tuple[int, int]]:
    """The characters of an answer that restate values of tool results.

    Both are compared as words and numbers, regardless of case, white space, punctuation and number format (1,200.50
    is 1200.5). From left to right, the longest run of the answer's words that occurs in one value is taken if it is
    the complete value or has at least `min_words`.

    Args:
        answer: The assistant's answer.
        results: The tools' results; the values of JSON are its leaves, other text is one value.
        min_words: Minimum words of a run that is only part of a value.
    """
    words = list(_words(answer))
    values = [value for result in results for leaf in _leaves(_parsed(result)) if (value := _normal_words(leaf))]
    places: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for value in values:
        for place, word in enumerate(value):
            places[word].append((value, place))
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(words):
        length = max((_run(words, at, *where, min_words) for where in places[words[at].normal]), default=0)
        if length:
            spans.append((words[at].start, words[at + length - 1].end))
        at += max(1, length)
    return spans


def _run(words: list[_Word], at: int, value: list[str], place: int, min_words: int) -> int:
    """How many words from `at` on match a value from `place` on; 0 if too few."""
    length = 0
    while (
        at + length < len(words)
        and place + length < len(value)
        and words[at + length].normal == value[place + length]
    ):
        length += 1
    is_complete = length == len(value) and _is_specific(value)
    return length if is_complete or length >= min_words else 0


def _is_specific(value: list[str]) -> bool:
    return any(word[0].isdigit() for word in value) or sum(map(len, value)) >= _SHORTEST_TEXT


def _normal_words(leaf: str) -> list[str]:
    return [word.normal for word in _words(leaf)]


def _words(text: str) -> Iterator[_Word]:
    for found in _WORD.finditer(text):
        yield _Word(_normal(found[0]), found.start(), found.end())


def _normal(word: str) -> str:
    if not word[0].isdigit():
        return word.casefold()
    whole, point, fraction = word.replace(",", "").partition(".")
    if "." in fraction:
        return word
    fraction = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (point + fraction if fraction else "")


def _parsed(result: str) -> object:
    try:
        value: object = json.loads(result)
    except (ValueError, RecursionError):
        return result
    return value


def _leaves(value: object) -> Iterator[str]:
    """Texts and numbers at any depth; booleans and null have too many wordings."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
