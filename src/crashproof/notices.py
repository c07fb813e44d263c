"""Log each kind of trouble once."""

from __future__ import annotations

import logging
from collections import Counter

__all__ = ["Notices"]

log = logging.getLogger("crashproof")

_MOST_KINDS = 50
"""A program that makes up a name at every step would otherwise fill the log."""


class Notices:
    """Warnings that are logged the first time and counted every time.

    A training loop repeats itself: what is odd in one step is odd in each. Not synchronised: two threads at once may
    both log a kind.
    """

    def __init__(self) -> None:
        self._counts: Counter[object] = Counter()
        self._num_unlisted = 0

    @property
    def counts(self) -> Counter[object]:
        """How often each kind has occurred."""
        return self._counts.copy()

    def is_new(self, kind: object) -> bool:
        """Count one occurrence of a kind; return whether it is to be logged."""
        if kind not in self._counts and len(self._counts) >= _MOST_KINDS:
            self._num_unlisted += 1
            if self._num_unlisted == 1:
                log.warning("More than %d kinds of warning of this sort: further ones are not logged.", _MOST_KINDS)
            return False
        self._counts[kind] += 1
        return self._counts[kind] == 1

    def warn(self, kind: object, message: str, *arguments: object) -> None:
        """Log a warning unless one of this kind was logged before."""
        if self.is_new(kind):
            log.warning(message, *arguments)
