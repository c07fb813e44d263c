"""Compile regular expressions at their first use.

Compiling all of the core's takes about 20 ms, and most processes use few of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import AnyStr, Generic

__all__ = ["LazyPattern"]


class LazyPattern(Generic[AnyStr]):
    """A regular expression that costs nothing until it is used; each method is that of `re.Pattern`."""

    def __init__(self, pattern: AnyStr, flags: re.RegexFlag = re.NOFLAG) -> None:
        self._pattern: AnyStr = pattern
        self._flags = flags

    def search(self, text: AnyStr, start: int = 0, end: int = sys.maxsize) -> re.Match[AnyStr] | None:
        """The first match in a part of a text."""
        return self._compiled.search(text, start, end)

    def match(self, text: AnyStr, start: int = 0, end: int = sys.maxsize) -> re.Match[AnyStr] | None:
        """The match at the beginning of a part of a text."""
        return self._compiled.match(text, start, end)

    def fullmatch(self, text: AnyStr) -> re.Match[AnyStr] | None:
        """The match of a whole text."""
        return self._compiled.fullmatch(text)

    def finditer(self, text: AnyStr) -> Iterator[re.Match[AnyStr]]:
        """All matches."""
        return self._compiled.finditer(text)

    def findall(self, text: AnyStr) -> list[AnyStr]:
        """The texts of all matches, where there is no group."""
        return self._compiled.findall(text)

    def split(self, text: AnyStr) -> list[AnyStr]:
        """The texts between the matches."""
        parts: list[AnyStr] = self._compiled.split(text)
        return parts

    def sub(self, replacement: AnyStr | Callable[[re.Match[AnyStr]], AnyStr], text: AnyStr) -> AnyStr:
        """The text with each match replaced."""
        return self._compiled.sub(replacement, text)

    @cached_property
    def _compiled(self) -> re.Pattern[AnyStr]:
        return re.compile(self._pattern, self._flags)
