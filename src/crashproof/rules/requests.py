"""Which requests may share an answer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from crashproof.errors import RequestError

__all__ = ["TeacherRequest", "nearest_difference", "teacher_request"]

_CANNOT_CHANGE_THE_ANSWER = frozenset(
    {
        *("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"),
        *("store", "stream", "stream_options", "user"),
    }
)
"""Parameters that say how to deliver, bill or file an answer, and not what it is."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SUCH_AS = "Such as https://api.openai.com/v1."

_WEIGHTS = {"messages": 100, "tools": 10, "model": 3}
"""How far apart a parameter sets two requests; 1 where it is not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRequest:
    """One question to one teacher, in canonical form; made by `teacher_request`."""

    base_url: str
    """Without a slash at its end."""
    body: dict[str, Any]
    """What is sent: parameters that are None are left out."""
    sample: int
    """Which of several answers to the same question."""
    key: str
    """SHA-256 over canonical JSON of all that can change the answer: 64 hexadecimal digits."""
    replaced: str = ""
    """The request whose answer was of no use, where this one is to bring another."""

    @property
    def idempotency_key(self) -> str:
        """What a server may know it by: whoever sends it again, in this life or the next, is charged once."""
        return f"crashproof-{self.key}-{self.replaced}" if self.replaced else f"crashproof-{self.key}"

    @property
    def model(self) -> str:
        """Who is asked."""
        return str(self.body["model"])

    def as_record(self) -> dict[str, Any]:
        """What is kept beside an answer."""
        return {"base_url": self.base_url, "sample": self.sample, "body": self.body}


def teacher_request(base_url: str, body: Mapping[str, Any], *, sample: int = 0) -> TeacherRequest:
    """The canonical request: the same for any order of keys, another for anything that could change the answer.

    A parameter that is None is one that is not there, and 1.0 as a parameter's value is 1; inside messages and tools
    both stay as they are, since a chat template would print them differently.

    Raises:
        RequestError: the address is none or holds a password; the body has no model, or is not made of JSON values.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("A request names no model.", hint='Pass model="…".')
    if sample < 0:
        raise RequestError(f"A sample is counted from 0, got {sample!r}.")
    url = _canonical_url(base_url)
    try:
        sent = {
            _json_value(name, "The body"): _number(_json_value(value, name))
            for name, value in sorted(_named(body, "The body"))
            if value is not None
        }
    except RecursionError as error:
        raise RequestError("The body is too deep, or contains itself.") from error
    asked = {name: value for name, value in sent.items() if name not in _CANNOT_CHANGE_THE_ANSWER}
    identity = {"crashproof_request": 1, "base_url": url, "sample": sample, "body": asked}
    key = hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()
    return TeacherRequest(base_url=url, body=sent, sample=sample, key=key)


def nearest_difference(request: TeacherRequest, stored: Iterable[Mapping[str, Any]]) -> str:
    """Why no stored request is this one: the parameter in which the nearest of them differs, with both values.

    `stored` are requests as `as_record` spells them; reading stops at one that could not be nearer.
    """
    wanted = _parameters(request.as_record())
    nearest: list[str] | None = None
    least = math.inf
    for record in stored:
        found = _parameters(record)
        names = [name for name in sorted(wanted.keys() | found.keys()) if not _is_same(wanted, found, name)]
        distance = sum(_WEIGHTS.get(name, 1) for name in names)
        if distance < least:
            least = distance
            nearest = [_difference(name, wanted, found) for name in names]
        if least <= 1:
            break
    if nearest is None:
        return "The store holds no answer whose request is known."
    if not nearest:
        return "The store holds an answer to this very request."
    return f"The nearest stored request differs in {'; '.join(nearest)}."


_ABSENT = object()


def _canonical_url(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        # What cannot be read may hold a password anywhere.
        raise RequestError("The base URL cannot be read.", hint=_SUCH_AS) from None
    if parts.scheme.lower() not in _DEFAULT_PORTS or not parts.hostname:
        told = "" if set("@?#") & set(base_url) else f" {base_url!r}"
        raise RequestError(f"The base URL{told} is no http address.", hint=_SUCH_AS)
    if parts.username or parts.password:
        raise RequestError(
            "The base URL holds a user or a password, which would be stored.", hint="Pass the key as api_key."
        )
    if parts.query or parts.fragment:
        raise RequestError(f"The base URL of {parts.hostname} ends in a query.", hint="Leave out what follows the ?.")
    scheme, host = parts.scheme.lower(), parts.hostname.lower()
    host = f"[{host}]" if ":" in host else host
    place = host if port in (None, _DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    return urlunsplit((scheme, place, parts.path.rstrip("/"), "", ""))


def _json_value(value: Any, name: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{name} is {value}, which JSON cannot hold.")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"{name} holds half a character ({error.reason}).") from error
        return value
    if isinstance(value, Mapping):
        return {_json_value(key, name): _json_value(child, f"{name}.{key}") for key, child in _named(value, name)}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_json_value(child, f"{name}[{place}]") for place, child in enumerate(value)]
    if hasattr(value, "model_dump"):
        # The official client's message types.
        return _json_value(value.model_dump(exclude_none=True, mode="json"), name)
    raise RequestError(f"{name} is a {type(value).__name__}, not a JSON value.")


def _named(value: Mapping[Any, Any], name: str) -> Iterable[tuple[str, Any]]:
    for key in value:
        if not isinstance(key, str):
            raise RequestError(f"{name} has the key {key!r}, which is no text.")
    return value.items()


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    body = {name: value for name, value in record["body"].items() if name not in _CANNOT_CHANGE_THE_ANSWER}
    return body | {"base_url": record["base_url"], "sample": record["sample"]}


def _is_same(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    left, right = one.get(name, _ABSENT), other.get(name, _ABSENT)
    if _ABSENT in (left, right):
        return left is right
    return _as_json(left) == _as_json(right)


def _as_json(value: Any) -> bytes:
    """True equals 1 to Python, and not to a teacher."""
    return msgspec.json.encode(value, order="sorted")


def _difference(name: str, wanted: dict[str, Any], found: dict[str, Any]) -> str:
    return _first_difference(name, wanted.get(name, _ABSENT), found.get(name, _ABSENT))


def _first_difference(name: str, wanted: Any, found: Any) -> str:
    if isinstance(wanted, dict) and isinstance(found, dict):
        key = next(key for key in sorted(wanted.keys() | found.keys()) if not _is_same(wanted, found, key))
        return _first_difference(f"{name}.{key}", wanted.get(key, _ABSENT), found.get(key, _ABSENT))
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        place = next(at for at in range(len(wanted)) if _as_json(wanted[at]) != _as_json(found[at]))
        return _first_difference(f"{name}[{place}]", wanted[place], found[place])
    if isinstance(wanted, str) and isinstance(found, str) and max(len(wanted), len(found)) > 40:
        place = next(
            (at for at, (one, other) in enumerate(zip(wanted, found, strict=False)) if one != other),
            min(len(wanted), len(found)),
        )
        return f"{name} from character {place}"
    return f"{name} ({_shown(wanted)} here, {_shown(found)} stored)"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, list):
        return f"{len(value)} entries"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}…"
