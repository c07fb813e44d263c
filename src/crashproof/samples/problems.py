"""Why a line makes no sample."""

from __future__ import annotations

from crashproof.data_files.record import Place
from crashproof.errors import DataError

__all__ = ["InvalidSample", "LeftOut", "problem_with_text"]


class InvalidSample(Exception):
    """A sample that is malformed, and what to do about it; nothing is trained."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint

    def at(self, place: Place) -> DataError:
        """The error that names the place."""
        return place.error(self.reason, hint=self.hint)


class LeftOut(Exception):
    """A sample that is well-formed, and that a student cannot or shall not learn; it is left out and counted."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """Completes `… are left out because `; the same for all samples of the kind."""
        self.hint = hint


def problem_with_text(text: str) -> str | None:
    """What keeps a tokenizer from reading a text; None if nothing does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"character {error.start + 1:,} is a lone surrogate, half of a character"
    return None
