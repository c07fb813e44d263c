"""Journals: files of lines that survive a crash."""

from crashproof.disk.journal.lines import Damage, Line, line_continues, line_crc, read_bytes_at, read_line
from crashproof.disk.journal.reading import scan, scan_backwards
from crashproof.disk.journal.writer import Interference, Journal, JournalAbandoned, append_durably, quarantine_bytes

__all__ = [
    "Damage",
    "Interference",
    "Journal",
    "JournalAbandoned",
    "Line",
    "append_durably",
    "line_continues",
    "line_crc",
    "quarantine_bytes",
    "read_bytes_at",
    "read_line",
    "scan",
    "scan_backwards",
]
