"""An update and where its line is."""

from __future__ import annotations

from msgspec import Struct

from crashproof.disk.journal import line_crc
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.snapshots import JournalMark

__all__ = ["JournalledUpdate"]


class JournalledUpdate(Struct, frozen=True, gc=False):
    """An update that is in the journal, or waits for space there."""

    update: MetricsSnapshot
    checksum: bytes
    """The end of its line."""
    end: int
    """Where the journal ends behind it, in bytes."""
    num_lines: int
    """Lines of the journal, this one included."""
    is_written: bool
    """Whether it is in the journal; else it waits for space, and where it will be is unknown."""

    @property
    def mark(self) -> JournalMark:
        """The end of its line."""
        return JournalMark(num_bytes=self.end, num_lines=self.num_lines, last_line_crc=line_crc(self.checksum))
