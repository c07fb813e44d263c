"""Open connections, through a proxy where the environment names one."""

from __future__ import annotations

import os
import ssl
from collections import defaultdict
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx2

from crashproof.errors import ConfigError
from crashproof.rules.secrets.proxies import MAY_SEE_KEYS, proxy_of, reads_requests

__all__ = ["Connections"]

_SOCKS = ("socks", "socks5", "socks5h")
_KNOWN = ("http", "https", "socks5", "socks5h")


class Connections:
    """A client for each request in flight, kept for the next one."""

    def __init__(self, *, headers: Mapping[str, str], connect_seconds: float) -> None:
        """Read the proxies and certificates of the environment.

        Raises:
            ConfigError: the certificates cannot be read.
        """
        self._headers = dict(headers)
        self._connect_seconds = connect_seconds
        self._tls = _tls_context()
        self._clients: list[httpx2.AsyncClient] = []
        self._idle: defaultdict[str | None, list[httpx2.AsyncClient]] = defaultdict(list)
        """By their proxy."""
        self._proxies = getproxies()
        self._proxy_of: dict[str, str | None] = {}
        self._may_proxy_see_key = os.environ.get(MAY_SEE_KEYS) == "1"

    def is_readable_on_the_way(self, base_url: str) -> bool:
        """Whether a proxy would receive a key in clear, and that is not allowed."""
        return not self._may_proxy_see_key and reads_requests(base_url, self.proxy(base_url))

    def proxy(self, base_url: str) -> str | None:
        """The proxy for a base URL, as the environment spells it; None if there is none."""
        if base_url not in self._proxy_of:
            self._proxy_of[base_url] = proxy_of(base_url, self._proxies)
        return self._proxy_of[base_url]

    def route(self, base_url: str) -> str:
        """The proxy for messages, without its account: ` through the proxy http://…`; empty if there is none."""
        proxy = self.proxy(base_url)
        return "" if proxy is None else f" through the proxy {_without_account(proxy)}"

    def take(self, base_url: str) -> httpx2.AsyncClient:
        """A client that nobody else uses until it is given back.

        Raises:
            ConfigError: the proxy cannot be used; nothing was sent.
        """
        proxy = self.proxy(base_url)
        idle = self._idle[proxy]
        return idle.pop() if idle else self._new_client(proxy)

    def give_back(self, client: httpx2.AsyncClient, base_url: str) -> None:
        """Keep a client, with its connection, for the next request."""
        self._idle[self.proxy(base_url)].append(client)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()

    def _new_client(self, proxy: str | None) -> httpx2.AsyncClient:
        """Make a client for one request in flight: a shared pool scans all its idle connections for every request."""
        try:
            client = httpx2.AsyncClient(
                headers=self._headers,
                timeout=httpx2.Timeout(None, connect=self._connect_seconds),
                limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
                follow_redirects=False,
                verify=self._tls,
                proxy=None if proxy is None else _usable(proxy),
                # The environment would send the requests to loopback addresses through its proxy, too.
                trust_env=False,
            )
        except ImportError as error:
            raise self._refused(proxy, "is a SOCKS proxy, and SOCKS support is not installed") from error
        except (ValueError, httpx2.InvalidURL) as error:
            raise self._refused(proxy, "cannot be used as a proxy") from error
        self._clients.append(client)
        return client

    def _refused(self, proxy: str | None, why: str) -> ConfigError:
        shown = _without_account(proxy or "")
        install = "Install it with `pip install 'httpx2[socks]'`" if "SOCKS" in why else "Correct it"
        return ConfigError(
            f"{_variable_with(proxy or '')} ({shown}) {why}.",
            hint=f"{install}, unset it, or name the teacher's host in NO_PROXY.",
        )


def _tls_context() -> ssl.SSLContext:
    try:
        return httpx2.create_ssl_context()
    except (OSError, ValueError) as error:
        named = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)}
        where = ", ".join(f"{name}={path}" for name, path in named.items()) or "this system"
        raise ConfigError(
            f"The certificates of {where} cannot be read ({error}).", hint="Correct the path, or unset the variable."
        ) from error


def _usable(proxy: str) -> str:
    """The proxy in a form that the HTTP library knows.

    Raises:
        ValueError: there is none.
    """
    parts = urlsplit(proxy)
    scheme = parts.scheme.lower()
    if not parts.hostname or parts.port == 0:
        raise ValueError("it names no host")
    if scheme in _SOCKS:
        # Desktops write `socks://`, which is version 5 with names resolved by the proxy.
        return f"{'socks5h' if scheme == 'socks' else scheme}://{parts.netloc}"
    if scheme not in _KNOWN:
        raise ValueError(f"{scheme} is not known")
    return proxy


def _variable_with(proxy: str) -> str:
    """The variable of the environment that holds a proxy."""
    bare = proxy.removeprefix("http://")
    for name, value in os.environ.items():
        if name.lower().endswith("_proxy") and value in (proxy, bare):
            return name
    return "The proxy of this system"


def _without_account(proxy: str) -> str:
    scheme, separator, rest = proxy.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
