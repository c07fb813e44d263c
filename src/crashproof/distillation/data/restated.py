"""What an answer says again of a tool's result."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["restated_spans"]

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
_SHORTEST_TEXT = 3
"""Letters of a whole value that is found by itself: `is` and `a` are everywhere."""


class _Word(NamedTuple):
    said: str
    """The same for whatever counts as the same."""
    start: int
    end: int


def restated_spans(answer: str, results: Sequence[str], *, min_words: int) -> list[tuple[int, int]]:
    """The characters of an answer that restate values of tool results.

    Both are read as words and numbers, whatever their case, the space and the punctuation between them, and however a
    number is written (1,200.50 is 1200.5). From left to right the longest run of an answer's words that stands in one
    value is taken, if it is the whole value or at least `min_words` long.

    Args:
        answer: What the assistant says.
        results: What the tools gave; values are the leaves where one is JSON, else it is one value itself.
        min_words: The shortest run that is only a part of a value.
    """
    words = list(_words(answer))
    values = [value for result in results for leaf in _leaves(_parsed(result)) if (value := _said(leaf))]
    places: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for value in values:
        for place, word in enumerate(value):
            places[word].append((value, place))
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(words):
        length = max((_run(words, at, *where, min_words) for where in places[words[at].said]), default=0)
        if length:
            spans.append((words[at].start, words[at + length - 1].end))
        at += max(1, length)
    return spans


def _run(words: list[_Word], at: int, value: list[str], place: int, min_words: int) -> int:
    """How many words from `at` on stand in a value from `place` on; 0 where that is too few."""
    length = 0
    while (
        at + length < len(words) and place + length < len(value) and words[at + length].said == value[place + length]
    ):
        length += 1
    is_whole = length == len(value) and _tells_something(value)
    return length if is_whole or length >= min_words else 0


def _tells_something(value: list[str]) -> bool:
    return any(word[0].isdigit() for word in value) or sum(map(len, value)) >= _SHORTEST_TEXT


def _said(leaf: str) -> list[str]:
    return [word.said for word in _words(leaf)]


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


def _parsed(result: str) -> Any:
    try:
        return json.loads(result)
    except (ValueError, RecursionError):
        return result


def _leaves(value: Any) -> Iterator[str]:
    """Texts and numbers, however deep; truth values and null are said in too many ways."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
