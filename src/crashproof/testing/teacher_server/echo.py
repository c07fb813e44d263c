"""Echo the key that a client sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum

from crashproof.testing.teacher_server.http_stub import Response

__all__ = ["KeyEcho", "echo_key"]


class KeyEcho(StrEnum):
    """How a server spells the key that it echoes in each of its bodies."""

    PLAIN = "plain"
    JSON_ESCAPED = "json_escaped"
    """Each second character as `\\u0073`."""
    TWICE_ESCAPED = "twice_escaped"
    """As JSON inside a JSON string."""
    URL_ENCODED = "url_encoded"
    HTML = "html"
    BASE64 = "base64"
    """Behind `Bearer`, as in a dump of the headers."""
    PAGE = "page"
    """No JSON but a page, with each second character escaped as in HTML."""


def echo_key(response: Response, key: str, echo: KeyEcho) -> Response:
    """A response that also holds the key: as the member `echo`, in the message of an error, and in the answer."""
    if echo is KeyEcho.PAGE:
        page = f"<html><body><p>You sent {_every_second(key, '&#{:d};')}.</p></body></html>".encode()
        return replace(response, content_type="text/html", pieces=(page,), is_chunked=False)
    body = b"".join(response.pieces)
    spelled = _SPELL[echo](key)
    mark = json.dumps(_MARK)[1:-1].encode()
    try:
        content = json.loads(body)
    except ValueError:
        return response
    content["echo"] = _MARK
    if isinstance(content.get("error"), dict):
        content["error"]["message"] = f"Incorrect key {_MARK}."
    for choice in content.get("choices", ()):
        choice["message"]["content"] = f"{choice['message'].get('content')} {_MARK}"
    return replace(response, pieces=(json.dumps(content).encode().replace(mark, spelled.encode()),))


_MARK = "THE-KEY-OF-THE-CLIENT"


def _every_second(key: str, escape: str) -> str:
    return "".join(each if place % 2 else escape.format(ord(each)) for place, each in enumerate(key))


_SPELL: Mapping[KeyEcho, Callable[[str], str]] = {
    KeyEcho.PLAIN: lambda key: json.dumps(key)[1:-1],
    KeyEcho.JSON_ESCAPED: lambda key: _every_second(key, "\\u{:04x}"),
    KeyEcho.TWICE_ESCAPED: lambda key: json.dumps(_every_second(key, "\\u{:04X}"))[1:-1],
    KeyEcho.URL_ENCODED: lambda key: _every_second(key, "%{:02X}"),
    KeyEcho.HTML: lambda key: _every_second(key, "&#x{:x};"),
    KeyEcho.BASE64: lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
}
