"""Send JSON by HTTP POST."""

from __future__ import annotations

import base64
import http.client
import os
import time
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener, getproxies

from crashproof.alerts.channels.base import ChannelUnavailable, DeliveryError
from crashproof.rules.secrets.proxies import MAY_SEE_KEYS, proxy_of, reads_requests

__all__ = ["post_json"]

_PAUSES_SECONDS = (1.0, 4.0)
"""Between the attempts."""


def post_json(address: str, content: bytes, *, response_seconds: float) -> None:
    """Post JSON; retry where it was certainly not accepted.

    Raises:
        DeliveryError: the last attempt failed, or the server may have accepted it without responding.
    """
    proxy = proxy_of(address, _usable_proxies())
    if reads_requests(address, proxy) and os.environ.get(MAY_SEE_KEYS) != "1":
        raise ChannelUnavailable(
            "its http:// address would go through a proxy unencrypted; use https://, add its host to NO_PROXY, "
            f"or set {MAY_SEE_KEYS}=1"
        )
    request, opener = _request(address, content), _opener(address, proxy)
    for pause_seconds in (*_PAUSES_SECONDS, None):
        try:
            with opener.open(request, timeout=response_seconds):
                return
        except HTTPError as error:
            error.close()
            reason, may_retry = f"HTTP {error.code}", error.code == 429 or error.code >= 500
        except URLError as error:
            reason, may_retry = _without_address(error.reason), True
        except TimeoutError:
            # The server may have accepted it; a retry could deliver it twice.
            reason, may_retry = f"no response after {response_seconds:g} s", False
        except (OSError, http.client.HTTPException) as error:
            reason, may_retry = _without_address(error), isinstance(error, OSError)
        if not may_retry or pause_seconds is None:
            raise DeliveryError(reason)
        time.sleep(pause_seconds)


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would turn the POST into a GET, and may lead anywhere."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


def _request(address: str, content: bytes) -> Request:
    parts = urlsplit(address)
    headers = {"Content-Type": "application/json", "User-Agent": "crashproof"}
    if parts.username is not None:
        account = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(account).decode()}"
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return Request(address, data=content, headers=headers, method="POST")  # noqa: S310 - checked


def _usable_proxies() -> dict[str, str]:
    """The environment's proxies, without those that `urllib` does not know."""
    return {scheme: proxy for scheme, proxy in getproxies().items() if not proxy.lower().startswith("socks")}


def _opener(address: str, proxy: str | None) -> OpenerDirector:
    proxies = {} if proxy is None else {urlsplit(address).scheme: proxy}
    return build_opener(_NoRedirects, ProxyHandler(proxies))


def _without_address(reason: object) -> str:
    """Only what cannot hold the address: an error's own text may."""
    if isinstance(reason, ConnectionError) and reason.errno:
        return os.strerror(reason.errno)
    return type(reason).__name__
