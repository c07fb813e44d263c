"""What of a line is learned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Preferences", "SampleRules"]


class Preferences(StrEnum):
    """What becomes of a line with a better and a worse answer."""

    REFUSE = "refuse"
    """An error."""
    CHOSEN = "chosen"
    """The better answer is learned, the worse one is not read."""
    PAIRS = "pairs"
    """Both are read, for a recipe that compares them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRules:
    """The decisions about content that a line does not make itself."""

    learns_reasoning: bool = False
    """Learn a teacher's thoughts as part of its answer; else they are removed, wherever the line has them."""
    learns_refusals: bool = False
    """Learn a refusal as an answer; else it is context at most."""
    preferences: Preferences = Preferences.REFUSE

    def digest_part(self) -> str:
        """What a digest of the data has to contain of them; empty for the defaults."""
        is_default = self == SampleRules(preferences=self.preferences)
        return "" if is_default and self.preferences is not Preferences.CHOSEN else repr(self)
