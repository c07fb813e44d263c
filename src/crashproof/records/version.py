"""The versions of the file format."""

from __future__ import annotations

__all__ = ["FORMAT_VERSION", "NAMED_DIGESTS", "NEWEST_VERSION"]

FORMAT_VERSION = 1
"""Of every record that has not changed since."""
NAMED_DIGESTS = 2
"""Of events and snapshots with digests that name their algorithm, which earlier versions cannot verify."""
NEWEST_VERSION = NAMED_DIGESTS
"""The highest that this code reads."""
