"""Print for people and programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping

import msgspec
import typer

from crashproof.records.lines.codec import nonfinite_names

__all__ = ["as_json_text", "clean", "print_json", "print_json_line", "print_line", "say", "say_lines"]

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, bidirectional overrides and lone surrogates."""
_PLAIN = str.maketrans({"…": "...", "→": "->", "·": "-"})


def say(text: str = "") -> None:
    """Print a line for people; control characters in a name or a config reach no terminal."""
    typer.echo(_fitting(clean(text)))


def say_lines(lines: Iterable[str]) -> None:
    """Several lines for people."""
    for line in lines:
        say(line)


def clean(text: str) -> str:
    r"""Text with every control character spelled out (`\x1b`), so that no terminal obeys it."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_json(answer: Mapping[str, object] | msgspec.Struct) -> None:
    """Print one object for programs; NaN and infinities are null, with their names in `nonfinite`."""
    typer.echo(_fitting_json(as_json_text(answer, indent=2), indent=2))


def print_json_line(answer: dict[str, object] | msgspec.Struct) -> None:
    """Print the same on one line, without a flush."""
    content: dict[str, object] = msgspec.to_builtins(answer)
    names = nonfinite_names(content)
    text = msgspec.json.encode(content | {"nonfinite": names} if names else content).decode()
    is_plain = text.isascii() and "\x7f" not in text
    sys.stdout.write((text if is_plain else _fitting_json(_escaped(text))) + "\n")


def print_line(text: str) -> None:
    """Print one of very many lines, cleaned already."""
    sys.stdout.write(_fitting(text) + "\n")


def as_json_text(answer: Mapping[str, object] | msgspec.Struct, *, indent: int | None = None) -> str:
    """The strict JSON of an object with control characters escaped; see `print_json`."""
    plain: dict[str, object] = msgspec.to_builtins(answer)
    nonfinite = nonfinite_names(plain)
    marked = plain | {"nonfinite": nonfinite} if nonfinite else plain
    text = json.dumps(_without_nonfinite(marked), indent=indent, ensure_ascii=False, allow_nan=False)
    return _escaped(text)


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def _without_nonfinite(value: object) -> object:
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
