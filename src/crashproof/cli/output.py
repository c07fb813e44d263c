"""What commands print, for people and for machines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import typer

from crashproof.records.codec import nonfinite_names

__all__ = ["as_json_text", "clean", "print_json", "print_json_line", "print_line", "say"]

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it, what turns text around, and half characters."""
_PLAIN = str.maketrans({"…": "...", "→": "->", "·": "-"})


def say(text: str = "") -> None:
    """One line for people; whatever a folder's or a config's text holds, a terminal only shows it."""
    typer.echo(_fitting(clean(text)))


def clean(text: str) -> str:
    r"""Text with every control character spelled out (`\x1b`), so that no terminal obeys it."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_json(answer: Mapping[str, Any] | msgspec.Struct) -> None:
    """One object for machines; NaN and infinities are null, with their names beside. Records become objects."""
    typer.echo(_fitting_json(as_json_text(answer, indent=2), indent=2))


def print_json_line(answer: dict[str, Any] | msgspec.Struct) -> None:
    """The same on one line; of many, not each is flushed."""
    content: dict[str, Any] = msgspec.to_builtins(answer)
    names = nonfinite_names(content)
    text = msgspec.json.encode(content | {"nonfinite": names} if names else content).decode()
    is_plain = text.isascii() and "\x7f" not in text
    sys.stdout.write((text if is_plain else _fitting_json(_escaped(text))) + "\n")


def print_line(text: str) -> None:
    """One of very many lines, clean already."""
    sys.stdout.write(_fitting(text) + "\n")


def as_json_text(answer: Mapping[str, Any] | msgspec.Struct, *, indent: int | None = None) -> str:
    """Strict JSON of an object, its control characters escaped; see `print_json`."""
    plain: dict[str, Any] = msgspec.to_builtins(answer)
    nonfinite = nonfinite_names(plain)
    content = _without_nonfinite(plain) | ({"nonfinite": nonfinite} if nonfinite else {})
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _escaped(text)


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(child) for child in value]
    return None if isinstance(value, float) and nonfinite_names(value) else value


def _fitting(text: str) -> str:
    """Text that the encoding of the output can hold."""
    if text.isascii():
        return text
    encoding = sys.stdout.encoding or "utf-8"
    if encoding.lower().replace("-", "") == "utf8":
        return text
    return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)


def _fitting_json(text: str, *, indent: int | None = None) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), indent=indent)
    return text
