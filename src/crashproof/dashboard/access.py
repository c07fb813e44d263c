"""Who may look, and what a browser may do with what it gets.

Three guards around every answer. The `Host` that a request names must be one that this server is known by: a page of
somebody else whose name is pointed at this machine (DNS rebinding) names its own. Where the server is reached from
other machines, a token is asked for: in the address once (`?token=…`), which sets a cookie, or as `Authorization:
Bearer …`. And a strict content-security policy: no script but the page's own files, no request to anywhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crashproof.errors import ConfigError

__all__ = ["Access", "AccessGuard", "is_loopback"]

LEAST_TOKEN_CHARACTERS = 16
_COOKIE = "crashproof"
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_ASK = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crashproof: token</title><link rel="stylesheet" href="page.css">
<main class="ask"><h1>crashproof</h1><p>%s</p>
<form method="get" action="./"><label>Token <input name="token" type="password" autocomplete="current-password"
autofocus></label> <button>Look</button></form>
<p>It stands in the address that <code>crashproof serve</code> printed when it started.</p></main>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a server asks of those who look."""

    token: str | None = None
    """None: whoever reaches it may look."""
    host_names: frozenset[str] = _LOCAL_NAMES
    """That a request may name."""
    takes_any_address: bool = False
    """Whether it may name any IP address: a name that is pointed here can be none."""

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < LEAST_TOKEN_CHARACTERS or not self.token.isascii()):
            raise ConfigError(
                f"A token must have at least {LEAST_TOKEN_CHARACTERS} characters, all of them ASCII.",
                hint="Leave it out and one is made.",
            )

    @classmethod
    def for_address(cls, host: str, *, token: str | None, more_names: Iterable[str] = ()) -> Access:
        """For a server that binds to `host`; beyond loopback there is always a token."""
        names = _LOCAL_NAMES | {host.lower()} | {name.lower() for name in more_names}
        if is_loopback(host):
            return cls(token=token, host_names=names)
        return cls(token=token or secrets.token_urlsafe(24), host_names=names, takes_any_address=True)

    def knows_host(self, header: str) -> bool:
        """Whether a request's `Host` is one of this server's."""
        name = _without_port(header.strip().lower()).rstrip(".")
        return name in self.host_names or (self.takes_any_address and _is_address(name))

    def is_token(self, given: str) -> bool:
        """Whether it is the right one; takes the same time whatever is wrong with it."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    @property
    def cookie(self) -> str:
        """What a browser keeps in place of the token."""
        return hashlib.sha256(f"crashproof:{self.token}".encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether a server that binds to it is reached from this machine alone."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class AccessGuard:
    """Lets through who may look, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._access.knows_host(headers.get("host", "")):
            return PlainTextResponse(
                "This server is not known by that name. Use the address that it printed, or start it with "
                "--allow-host NAME.\n",
                status_code=421,
            )
        if self._access.token is None:
            return None
        given = QueryParams(scope["query_string"]).get("token")
        if given is not None and scope["path"] == "/":
            if not self._access.is_token(given):
                return HTMLResponse(_ASK % "That is not the token.", status_code=401)
            # Away from the address bar and the history.
            answer = RedirectResponse("./", status_code=303)
            answer.set_cookie(
                _COOKIE, self._access.cookie, httponly=True, samesite="strict", secure=scope["scheme"] == "https"
            )
            return answer
        if self._may_look(headers) or scope["path"] == "/page.css":
            return None
        if scope["path"] == "/":
            return HTMLResponse(_ASK % "This server asks for a token.", status_code=401)
        return PlainTextResponse("A token is needed.\n", status_code=401, headers={"www-authenticate": "Bearer"})

    def _may_look(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._access.is_token(given.strip()):
            return True
        kept = cookie_parser(headers.get("cookie", "")).get(_COOKIE, "")
        return hmac.compare_digest(kept.encode(), self._access.cookie.encode())


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
