"""Format numbers for people."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

__all__ = ["ago", "as_bytes", "as_dollars_text", "as_duration", "as_text", "listing"]


def as_duration(seconds: float | None) -> str:
    """`2 h 10 min`, `35 s`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ago(then: float | None, now: float) -> str:
    """`35 s ago`; `never` for None."""
    return "never" if then is None else f"{as_duration(max(0.0, now - then))} ago"


def as_bytes(count: int) -> str:
    """`1.5 MB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def as_dollars_text(dollars: Decimal) -> str:
    """`$1,234.50`; below a cent the two leading digits: `$0.0012`."""
    sign = "-" if dollars < 0 else ""
    num_decimals = max(2, 1 - dollars.adjusted()) if dollars else 2
    return f"{sign}${abs(dollars):,.{num_decimals}f}"


def as_text(name: str) -> str:
    r"""A file's name as text that every encoding of Unicode can hold: bytes that are no UTF-8 become `\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def listing(names: Sequence[str], *, most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(as_text, names[:most])) + more
