"""Access control for the dashboard.

Every request passes three guards. Its `Host` must be one of the server's own names: a foreign page whose name was
pointed at this machine (DNS rebinding) sends another one. A server that other machines reach requires a token: once
in the address (`?token=…`), which sets a cookie, or as `Authorization: Bearer …`. A strict content-security policy
allows only the page's own scripts, and requests to no other host.
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

_SIGN_IN = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crashproof: token</title><link rel="stylesheet" href="page.css">
<main class="ask"><h1>crashproof</h1><p>%s</p>
<form method="get" action="./"><label>Token <input name="token" type="password" autocomplete="current-password"
autofocus></label> <button>Open</button></form>
<p>The token is part of the address that <code>crashproof serve</code> printed when it started.</p></main>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a server requires of a request."""

    token: str | None = None
    """None: no token is required."""
    host_names: frozenset[str] = _LOCAL_NAMES
    """The names allowed in `Host`."""
    takes_any_address: bool = False
    """Whether `Host` may be any IP address, which DNS rebinding cannot forge."""

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < LEAST_TOKEN_CHARACTERS or not self.token.isascii()):
            raise ConfigError(
                f"A token must have at least {LEAST_TOKEN_CHARACTERS} characters, all of them ASCII.",
                hint="Leave it out to have one generated.",
            )

    @classmethod
    def for_address(cls, host: str, *, token: str | None, more_names: Iterable[str] = ()) -> Access:
        """Return the rules for a server bound to `host`; beyond loopback there is always a token."""
        names = _LOCAL_NAMES | {host.lower()} | {name.lower() for name in more_names}
        if is_loopback(host):
            return cls(token=token, host_names=names)
        return cls(token=token or secrets.token_urlsafe(24), host_names=names, takes_any_address=True)

    def knows_host(self, header: str) -> bool:
        """Whether a request's `Host` is one of this server's names."""
        name = _without_port(header.strip().lower()).rstrip(".")
        return name in self.host_names or (self.takes_any_address and _is_address(name))

    def is_token(self, given: str) -> bool:
        """Whether `given` is the token, compared in constant time."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    @property
    def cookie(self) -> str:
        """The cookie's value, which stands for the token."""
        return hashlib.sha256(f"crashproof:{self.token}".encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class AccessGuard:
    """Refuses requests without access, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
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

        await (self._refusal(scope) or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._access.knows_host(headers.get("host", "")):
            return PlainTextResponse(
                "This server does not answer to that host name. Use the address that it printed, or start it with "
                "--allow-host NAME.\n",
                status_code=421,
            )
        if self._access.token is None:
            return None
        given = QueryParams(scope["query_string"]).get("token")
        if given is not None and scope["path"] == "/":
            if not self._access.is_token(given):
                return HTMLResponse(_SIGN_IN % "Wrong token.", status_code=401)
            # Keeps the token out of the address bar and the history.
            answer = RedirectResponse("./", status_code=303)
            answer.set_cookie(
                _COOKIE, self._access.cookie, httponly=True, samesite="strict", secure=scope["scheme"] == "https"
            )
            return answer
        if self._has_access(headers) or scope["path"] == "/page.css":
            return None
        if scope["path"] == "/":
            return HTMLResponse(_SIGN_IN % "This server requires a token.", status_code=401)
        return PlainTextResponse("A token is required.\n", status_code=401, headers={"www-authenticate": "Bearer"})

    def _has_access(self, headers: Headers) -> bool:
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
