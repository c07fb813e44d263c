"""How long to wait before a restart."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits that double with each restart without progress, half of each drawn at random."""

    first_seconds: float = 2.0
    longest_seconds: float = 300.0

    def seconds(self, num_in_vain: int, *, draw: float) -> float:
        """The wait before a restart; `draw` is between 0 and 1, so that many runs do not start at one moment."""
        doubled = self.first_seconds * 2.0 ** min(max(0, num_in_vain - 1), 30)
        return min(doubled, self.longest_seconds) * (0.5 + 0.5 * draw)
