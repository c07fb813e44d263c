"""Encode and decode records.

Each record is one checksummed line of JSON. NaN and infinities, which JSON cannot hold, are written as null, with
their names in the field `nonfinite`; reading restores them.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import msgspec

from crashproof.errors import NewerFormat, UnknownRecord
from crashproof.records.lines.checksummed_line import CHECKSUMMED, version_of
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.version import FORMAT_VERSION, NEWEST_VERSION

__all__ = ["decode", "decode_line", "encode", "nonfinite_names", "refuse_newer"]

# An amount of money is written as an exact number, digit for digit.
_encode = msgspec.json.Encoder(decimal_format="number").encode
_exact_decoder = msgspec.json.Decoder(float_hook=Decimal)

T = TypeVar("T")


def encode(record: object) -> bytes:
    """One checksummed line. NaN and infinities become null; see `nonfinite_names`."""
    # As `add_checksum`, without the call: this runs at every update.
    body = _encode(record)[:-1]
    return CHECKSUMMED % (body, crc32(body))


def decode(line: bytes, decoder: msgspec.json.Decoder[T] | LazyDecoder[T]) -> T:
    """The record in an intact line, its NaN and infinities restored.

    Raises:
        msgspec.ValidationError: the line holds another kind of record, or contradicts itself.
    """
    try:
        if b'"nonfinite":' not in line:
            return decoder.decode(line)
        return msgspec.convert(_with_nonfinite_restored(_exact_decoder.decode(line)), decoder.type, str_keys=True)
    except msgspec.ValidationError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Its checksum is right and its content is not: no version of this program has written it.
        raise msgspec.ValidationError(f"{error} ({type(error).__name__})") from error


def decode_line(path: Path, line: bytes, decoder: msgspec.json.Decoder[T] | LazyDecoder[T]) -> T:
    """The record in an intact line of a journal.

    Raises:
        NewerFormat: it was written by a newer version.
        UnknownRecord: this version does not know it.
    """
    try:
        record = decode(line, decoder)
    except msgspec.ValidationError as error:
        refuse_newer(path, line, known=FORMAT_VERSION)
        raise UnknownRecord(path, reason=str(error)) from error
    known: int = getattr(record, "newest_version", FORMAT_VERSION)
    if getattr(record, "v", known) > known:
        refuse_newer(path, line, known=known)
    return record


def refuse_newer(path: Path, content: bytes, *, known: int = NEWEST_VERSION) -> None:
    """Refuse an intact line or snapshot that a newer version has written.

    Raises:
        NewerFormat: its version is above the one that this code knows of its kind.
    """
    found = version_of(content)
    if found > known:
        raise NewerFormat(path, found=found, known=known)


_PERHAPS_NONFINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""In MessagePack: a 64-bit float whose exponent bits are all set. Other bytes may look the same."""


def nonfinite_names(value: object) -> dict[str, str]:
    """Every NaN and infinity in `value`, by its dotted name: `{"loss_components.kd": "NaN"}`."""
    try:
        # Far faster than checking each value, and nearly always enough: an answer may have 10,000 of them.
        if _PERHAPS_NONFINITE.search(msgspec.msgpack.encode(value)) is None:
            return {}
    except (OverflowError, TypeError, ValueError):
        # JSON can hold values that MessagePack cannot.
        pass
    return _nonfinite_names(value, "")


def _nonfinite_names(value: object, name: str) -> dict[str, str]:
    if isinstance(value, float):
        return {} if math.isfinite(value) else {name: _spelling(value)}
    if isinstance(value, dict):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(str(index), child) for index, child in enumerate(value)]
    else:
        return {}
    found: dict[str, str] = {}
    for key, child in children:
        found |= _nonfinite_names(child, f"{name}.{key}" if name else key)
    return found


def _spelling(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


_OWN_TO_THE_USER = frozenset({"config", "evaluation", "loss_components", "request", "response", "results"})
"""Fields whose content has names of the user's choosing: a "nonfinite" in there is not ours."""


def _with_nonfinite_restored(value: object) -> object:
    if isinstance(value, list):
        return [_with_nonfinite_restored(child) for child in value]
    if not isinstance(value, dict):
        return value
    restored = {
        key: _with_floats(child) if key in _OWN_TO_THE_USER else _with_nonfinite_restored(child)
        for key, child in value.items()
    }
    for name, spelling in (value.get("nonfinite") or {}).items():
        _put(restored, name, float(spelling))
    return restored


def _with_floats(value: object) -> object:
    """A user's JSON with its numbers as floats again; the decoder reads all of them as decimals."""
    if isinstance(value, dict):
        return {key: _with_floats(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_with_floats(child) for child in value]
    return float(value) if isinstance(value, Decimal) else value


def _put(container: dict[str, Any] | list[Any], name: str, value: float) -> None:
    """Set the value at a dotted name; a key may itself contain dots."""
    if isinstance(container, list):
        head, _, rest = name.partition(".")
        if rest:
            _put(container[int(head)], rest, value)
        else:
            container[int(head)] = value
        return
    if name in container:
        container[name] = value
        return
    for key, child in container.items():
        if name.startswith(f"{key}.") and isinstance(child, (dict, list)):
            _put(child, name[len(key) + 1 :], value)
            return
