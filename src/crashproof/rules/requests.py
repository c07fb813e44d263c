"""Which requests may share an answer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from crashproof.errors import RequestError
from crashproof.records.lines.checksummed_line import MAX_LINE_BYTES, is_nested_too_deeply
from crashproof.rules.base_urls import canonical_base_url

__all__ = ["JsonObject", "TeacherRequest", "deciding_parameters", "nearest_difference", "teacher_request"]

_MAX_REQUEST_BYTES = MAX_LINE_BYTES // 4

JsonObject = dict[str, Any]
"""A JSON object whose fields are not known in advance."""

_CANNOT_CHANGE_THE_ANSWER = frozenset(
    {
        *("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"),
        *("store", "stream", "stream_options", "user"),
    }
)
"""Parameters that affect delivery, billing or storage of an answer, not its content."""

_DELIVERY = frozenset({"stream", "stream_options"})

_WEIGHTS = {"messages": 100, "tools": 10, "model": 3}
"""How much a differing parameter adds to the distance of two requests; 1 if not listed."""


class TeacherRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to one teacher, in canonical form; made by `teacher_request`."""

    base_url: str
    """Without a trailing slash."""
    body: JsonObject
    """The body to send, without parameters that are None."""
    sample: int
    """Index among several answers to the same request."""
    key: str
    """SHA-256 over canonical JSON of everything that can change the answer: 64 hexadecimal digits."""
    replaced: str = ""
    """The id of the earlier request whose unusable answer this one replaces."""

    @property
    def idempotency_key(self) -> str:
        """The same for every retry, also after a restart, so that a server that supports it charges once."""
        return f"crashproof-{self.key}-{self.replaced}" if self.replaced else f"crashproof-{self.key}"

    @property
    def digest(self) -> bytes:
        """The first 16 bytes of the key: what to remember of each of a million requests."""
        return bytes.fromhex(self.key[:32])

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.body["model"])

    def as_record(self) -> JsonObject:
        """The fields that are stored with an answer."""
        return {"base_url": self.base_url, "sample": self.sample, "body": self.body}


def teacher_request(base_url: str, body: Mapping[str, object], *, sample: int = 0) -> TeacherRequest:
    """Make the canonical request: independent of key order, distinct for anything that could change the answer.

    A parameter that is None counts as absent, and a parameter's value 1.0 as 1; inside messages and tools both are
    kept, since a chat template would print them differently.

    Raises:
        RequestError: the URL is invalid or holds a password; the body has no model, is not made of JSON values, or is
            too large to be stored with its answer.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("The request names no model.", hint='Pass model="…".')
    if sample < 0:
        raise RequestError(f"sample must be 0 or more, got {sample!r}.")
    url = canonical_base_url(base_url)
    try:
        sent = {
            _json_value(name, "The body"): _number(_json_value(value, name))
            for name, value in sorted(_named(body, "The body"))
            if value is not None
        }
    except RecursionError as error:
        raise RequestError("The body is nested too deeply, or contains itself.") from error
    asked = {name: value for name, value in sent.items() if name not in _CANNOT_CHANGE_THE_ANSWER}
    identity = {"crashproof_request": 1, "base_url": url, "sample": sample, "body": asked}
    encoded = msgspec.json.encode(identity, order="sorted")
    # An answer is stored with its request, in one line.
    if is_nested_too_deeply(b"[" + encoded + b"]"):
        raise RequestError("The body is nested too deeply, or contains itself.")
    if len(encoded) > _MAX_REQUEST_BYTES:
        raise RequestError(
            f"The request has {len(encoded):,} bytes, more than the {_MAX_REQUEST_BYTES:,} that can be stored with "
            "its answer.",
            hint="Send less at once.",
        )
    key = hashlib.sha256(encoded).hexdigest()
    return TeacherRequest(base_url=url, body=sent, sample=sample, key=key)


def deciding_parameters(parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters by which a run or a job is known again: a stream delivers the same answers."""
    return {name: value for name, value in parameters.items() if name not in _DELIVERY}


def nearest_difference(request: TeacherRequest, stored: Iterable[JsonObject]) -> str:
    """Explain a miss: the parameters in which the nearest stored request differs, with both values.

    `stored` holds requests in the form of `as_record`; reading stops once no other could be nearer.
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
        return "The store holds an answer to this exact request."
    return f"The nearest stored request differs in {'; '.join(nearest)}."


_ABSENT = object()


def _json_value(value: object, name: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{name} is {value}, which JSON cannot represent.")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"{name} contains a lone surrogate ({error.reason}).") from error
        return value
    if isinstance(value, Mapping):
        return {_json_value(key, name): _json_value(child, f"{name}.{key}") for key, child in _named(value, name)}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_json_value(child, f"{name}[{place}]") for place, child in enumerate(value)]
    if hasattr(value, "model_dump"):
        # The official client's message types.
        return _json_value(value.model_dump(exclude_none=True, mode="json"), name)
    raise RequestError(f"{name} is a {type(value).__name__}, not a JSON value.")


def _named(value: Mapping[Any, object], name: str) -> Iterable[tuple[str, object]]:
    for key in value:
        if not isinstance(key, str):
            raise RequestError(f"{name} has the key {key!r}, which is not a string.")
    return value.items()


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parameters(record: JsonObject) -> JsonObject:
    body = {name: value for name, value in record["body"].items() if name not in _CANNOT_CHANGE_THE_ANSWER}
    return body | {"base_url": record["base_url"], "sample": record["sample"]}


def _is_same(one: JsonObject, other: JsonObject, name: str) -> bool:
    left, right = one.get(name, _ABSENT), other.get(name, _ABSENT)
    if _ABSENT in (left, right):
        return left is right
    return _as_json(left) == _as_json(right)


def _as_json(value: object) -> bytes:
    """True equals 1 to Python, and not to a teacher."""
    return msgspec.json.encode(value, order="sorted")


def _difference(name: str, wanted: JsonObject, found: JsonObject) -> str:
    return _first_difference(name, wanted.get(name, _ABSENT), found.get(name, _ABSENT))


def _first_difference(name: str, wanted: object, found: object) -> str:
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


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, list):
        return f"{len(value)} entries"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}…"
