"""Access control for the dashboard.

Every request passes three guards. Its `Host` must be one of the server's own names: a foreign page whose name was
pointed at this machine (DNS rebinding) sends another one. It needs the token, on loopback too, since every account of
this machine reaches that: once in the address (`?token=…`), which sets a cookie, or as `Authorization: Bearer …`. A
strict content-security policy allows only the page's own scripts, and requests to no other host.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crashproof.dashboard.server_log import describe_error
from crashproof.errors import ConfigError

__all__ = ["SECURITY_HEADERS", "Access", "AccessGuard", "is_loopback"]

log = logging.getLogger("crashproof")

LEAST_TOKEN_CHARACTERS = 16
_TOKEN_BYTES = 32
_MOST_BODY_BYTES = 16 * 1024
_MOST_DIGITS = 10
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Sent with every response."""

_HOW_TO_GET_IN = (
    "Open the address that `crashproof serve` printed when it started, or send its token as "
    "`Authorization: Bearer TOKEN`. To choose the token yourself, set CRASHPROOF_TOKEN before you start the server."
)
_SIGN_IN = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crashproof: token</title><link rel="stylesheet" href="page.css">
<main class="ask"><h1>crashproof</h1><p>%s</p>
<form method="get" action="./"><label>Token <input name="token" type="password" autocomplete="current-password"
autofocus></label> <button>Open</button></form>
<p>The token is part of the address that <code>crashproof serve</code> printed when it started. To choose it yourself,
set <code>CRASHPROOF_TOKEN</code> before you start the server.</p></main>"""
_OPEN_AGAIN = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=./">
<title>crashproof</title><p><a href="./">Open the page</a></p>"""
"""A browser keeps the cookie back when another site's link was followed, and sends it when this page goes on."""


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
    def for_address(
        cls, host: str, *, token: str | None, more_names: Iterable[str] = (), requires_token: bool = True
    ) -> Access:
        """Return the rules for a server bound to `host`; a missing token is generated.

        Raises:
            ConfigError: no token is to be required, and other machines reach the server, or there is one.
        """
        names = _LOCAL_NAMES | {host.lower()} | {name.lower() for name in more_names}
        if not requires_token:
            _require_no_token_needed(host, token)
            return cls(token=None, host_names=names)
        return cls(
            token=token or secrets.token_urlsafe(_TOKEN_BYTES),
            host_names=names,
            takes_any_address=not is_loopback(host),
        )

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
    """Refuses requests without access, and adds the security headers to every response.

    A request that fails is one line in the log, and its response has these headers too.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_guarded)
        except Exception as error:
            # Not the query: it may contain a token.
            log.error("A request for %s failed: %s", scope["path"], describe_error(error))  # noqa: TRY400 - one line
            if not has_started:
                failure = PlainTextResponse("The server failed; its log says where.\n", status_code=500)
                await failure(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._access.knows_host(headers.get("host", "")):
            return _refuse(
                421,
                "This server does not answer to that host name. Use the address that it printed, or start it with "
                "--allow-host NAME.\n",
            )
        if _has_long_body(headers):
            return _refuse(413, "This server takes no request bodies.\n")
        if self._access.token is None:
            return None
        given = QueryParams(scope["query_string"]).get("token")
        if given is not None and scope["path"] == "/":
            return self._enter(scope, headers, given)
        if self._has_access(scope, headers) or scope["path"] == "/page.css":
            return None
        if scope["path"] != "/":
            return _refuse(401, f"A token is required. {_HOW_TO_GET_IN}\n", {"www-authenticate": "Bearer"})
        if headers.get("sec-fetch-site") == "cross-site":
            return HTMLResponse(_OPEN_AGAIN, status_code=401)
        return HTMLResponse(_SIGN_IN % "This server requires a token.", status_code=401)

    def _enter(self, scope: Scope, headers: Headers, given: str) -> Response:
        """Exchange the token of an address for a cookie."""
        if not self._access.is_token(given):
            _report_wrong_token(scope)
            return HTMLResponse(_SIGN_IN % "Wrong token.", status_code=401)
        # Keeps the token out of the address bar and the history.
        answer = RedirectResponse("./", status_code=303)
        answer.set_cookie(
            _cookie_name(scope, headers),
            self._access.cookie,
            httponly=True,
            samesite="strict",
            secure=scope["scheme"] == "https",
        )
        return answer

    def _has_access(self, scope: Scope, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self._access.is_token(given.strip()):
                return True
            _report_wrong_token(scope)
        kept = cookie_parser(headers.get("cookie", "")).get(_cookie_name(scope, headers), "")
        return hmac.compare_digest(kept.encode(), self._access.cookie.encode())


def _refuse(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    # A connection that is refused is not kept.
    return PlainTextResponse(text, status_code=status, headers={"connection": "close", **(headers or {})})


def _require_no_token_needed(host: str, token: str | None) -> None:
    if not is_loopback(host):
        raise ConfigError(
            f"--no-token is for loopback alone: other machines reach {host}.",
            hint="Leave it out, or leave out --host.",
        )
    if token is not None:
        raise ConfigError("--no-token contradicts CRASHPROOF_TOKEN, which is set.", hint="Leave out one of them.")


def _report_wrong_token(scope: Scope) -> None:
    client = scope.get("client")
    log.warning("A request from %s with a wrong token was refused.", client[0] if client else "an unknown address")


def _has_long_body(headers: Headers) -> bool:
    """Whether a request brings a body that is long, or whose length is unknown."""
    length = headers.get("content-length", "0")
    is_number = length.isascii() and length.isdecimal() and len(length) < _MOST_DIGITS
    return "transfer-encoding" in headers or not is_number or int(length) > _MOST_BODY_BYTES


def _cookie_name(scope: Scope, headers: Headers) -> str:
    """A name with the port that the browser sees: all ports of one host share their cookies."""
    port = headers.get("host", "").rpartition("]")[2].rpartition(":")[2]
    usual = "443" if scope["scheme"] == "https" else "80"
    return f"crashproof-{port if port.isdecimal() and port.isascii() and len(port) < 6 else usual}"


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
