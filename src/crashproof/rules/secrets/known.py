"""Secrets that this process knows, hidden however they are spelled."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

import msgspec

from crashproof.patterns import LazyPattern

__all__ = ["KnownSecrets"]

_HIDDEN = "***"
_LEAST_LENGTH = 6
"""A shorter one would be part of ordinary words."""
_LEAST_ENCODED = 8
_SLASHES = r"\\{1,16}"
_BASE64 = {"+": "[+-]", "/": "[/_]"}
_ESCAPE = LazyPattern(r"\\[^bfnrt]|%[0-9a-f]{2}|&#?[a-z0-9]{1,8};")


class KnownSecrets:
    """Hides secrets by exact match: as they are, escaped as in JSON, HTML or an address, in hex, and in base64.

    Any part of the characters may be escaped, also several times over.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        known = sorted({each for each in secrets if len(each) >= _LEAST_LENGTH}, key=len, reverse=True)
        self._cores = [core for each in known for core in _cores(each)]
        """In lower case."""
        patterns = [pattern for each in known for pattern in _patterns(each)]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def hide(self, text: str) -> str:
        """Text without the secrets."""
        return text if self._pattern is None or not self._may_be_in(text) else self._pattern.sub(_HIDDEN, text)

    def hide_in_body(self, body: bytes) -> bytes:
        """A body without the secrets, as it came if it has none; JSON stays JSON."""
        if self._pattern is None:
            return body
        text = body.decode("utf-8", "surrogateescape")
        cleaned = self.hide(text)
        as_it_reads = body if cleaned == text else cleaned.encode("utf-8", "surrogateescape")
        try:
            content = self._hide_in_value(msgspec.json.decode(body))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return as_it_reads
        return as_it_reads if _is_json_of(content, as_it_reads) else msgspec.json.encode(content)

    def _may_be_in(self, text: str) -> bool:
        """Whether it is worth while to search a text closely."""
        lower = text.lower()
        return _ESCAPE.search(lower) is not None or any(core in lower for core in self._cores)

    def _hide_in_value(self, value: object) -> object:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self._hide_in_value(each) for each in value]
        if isinstance(value, dict):
            return {self.hide(name): self._hide_in_value(each) for name, each in value.items()}
        return value


def _is_json_of(content: object, body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body) == content)
    except msgspec.MsgspecError:
        return False


def _patterns(secret: str) -> list[str]:
    """Patterns of all that a secret can look like."""
    # In base64, the characters at both ends also hold a part of what stands beside the secret.
    encoded = [
        "[A-Za-z0-9+/_-]{0,1}" + "".join(_BASE64.get(each, each) for each in core) + "[A-Za-z0-9+/_=-]{0,3}"
        for core in _encoded(secret)
    ]
    return ["".join(map(_character, secret)), f"(?i:{_bytes_of(secret).hex()})", *encoded]


def _cores(secret: str) -> list[str]:
    """What a text without escapes must contain, in lower case, to hold a secret."""
    encoded = [core.lower() for core in _encoded(secret)]
    in_addresses = [core.replace("+", "-").replace("/", "_") for core in encoded]
    return [secret.lower(), _bytes_of(secret).hex(), *encoded, *in_addresses]


def _encoded(secret: str) -> list[str]:
    """What a secret is in base64, by what stands before it, without the characters at its ends."""
    content = _bytes_of(secret)
    cores = []
    for offset in range(3):
        characters = base64.b64encode(b"\0" * offset + content + b"\0" * 3).decode()
        cores.append(characters[(0, 2, 3)[offset] : (offset + len(content)) * 8 // 6])
    return [core for core in cores if len(core) >= _LEAST_ENCODED]


def _bytes_of(secret: str) -> bytes:
    return secret.encode("utf-8", "backslashreplace")


def _character(character: str) -> str:
    """A pattern of all the ways to write one character."""
    number = ord(character)
    utf16 = character.encode("utf-16-be", "surrogatepass")
    utf8 = character.encode("utf-8", "surrogatepass")
    # Only a process that knows secrets needs it.
    from html import escape

    name = escape(character).strip("&").removeprefix("#x27;")
    names = f"|{name}" if name.endswith(";") and len(name) > 1 else ""
    # A slash may be escaped for its own sake, and a quote must be.
    escaped = "" if character.isalnum() else r"\\{0,16}"
    ways = [
        escaped + re.escape(character),
        "".join(f"{_SLASHES}u{utf16[at : at + 2].hex()}" for at in range(0, len(utf16), 2)),
        "".join(f"{_SLASHES}x{each:02x}" for each in utf8),
        f"{_SLASHES}u\\{{0*{number:x}\\}}",
        "".join(f"%(?:25)*{each:02x}" for each in utf8),
        f"&(?:amp;)*(?:#0*{number};|#x0*{number:x};{names})",
    ]
    return f"(?i:{'|'.join(ways)})"
