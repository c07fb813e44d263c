"""Records as sealed lines.

NaN and infinities, which JSON cannot hold, are null in a line, with their names beside; reading restores them.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from crashproof.errors import NewerFormat, UnknownRecord
from crashproof.records.checksummed_line import add_checksum, version_of
from crashproof.records.version import FORMAT_VERSION

__all__ = ["decode", "decode_line", "encode", "nonfinite_names", "refuse_newer"]

# A sum of money stands in a line as the number that it is, digit for digit.
_encoder = msgspec.json.Encoder(decimal_format="number")
_exact_decoder = msgspec.json.Decoder(float_hook=Decimal)

T = TypeVar("T")


def encode(record: Any) -> bytes:
    """One sealed line. NaN and infinities become null; see `nonfinite_names`."""
    return add_checksum(_encoder.encode(record))


def decode(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The record in a whole line, its NaN and infinities restored.

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


def decode_line(path: Path, line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The record in a whole line of a journal.

    Raises:
        NewerFormat: it was written by a newer version.
        UnknownRecord: this version does not know it.
    """
    try:
        record = decode(line, decoder)
    except msgspec.ValidationError as error:
        refuse_newer(path, line)
        raise UnknownRecord(path, reason=str(error)) from error
    if getattr(record, "v", FORMAT_VERSION) > FORMAT_VERSION:
        refuse_newer(path, line)
    return record


def refuse_newer(path: Path, content: bytes) -> None:
    """Stop at what a newer version has sealed.

    Raises:
        NewerFormat: it names a version above this one's.
    """
    found = version_of(content)
    if found > FORMAT_VERSION:
        raise NewerFormat(path, found=found, known=FORMAT_VERSION)


_PERHAPS_NONFINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""In MessagePack: a float of 64 bits whose exponent has all its bits set. Other bytes may look like it."""


def nonfinite_names(value: Any) -> dict[str, str]:
    """Every NaN and infinity in `value`, by its dotted name: `{"loss_components.kd": "NaN"}`."""
    try:
        # Far faster than looking at each value, and nearly always enough: an answer may have 10,000 of them.
        if _PERHAPS_NONFINITE.search(msgspec.msgpack.encode(value)) is None:
            return {}
    except (OverflowError, TypeError, ValueError):
        # What MessagePack cannot hold, JSON may.
        pass
    return _nonfinite_names(value, "")


def _nonfinite_names(value: Any, name: str) -> dict[str, str]:
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
"""Fields whose insides have names of their own: "nonfinite" in there is no word of ours."""


def _with_nonfinite_restored(value: Any) -> Any:
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


def _with_floats(value: Any) -> Any:
    """What a user has put in, read as exactly as sums of money are, as JSON usually is."""
    if isinstance(value, dict):
        return {key: _with_floats(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_with_floats(child) for child in value]
    return float(value) if isinstance(value, Decimal) else value


def _put(container: Any, name: str, value: float) -> None:
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
