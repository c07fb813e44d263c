"""Which proxy a request goes through, and whether that proxy would read its key."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from crashproof.patterns import LazyPattern

__all__ = ["MAY_SEE_KEYS", "is_loopback", "proxy_of", "reads_requests"]

MAY_SEE_KEYS = "CRASHPROOF_PROXY_MAY_SEE_KEYS"
"""The variable that allows keys to be sent in clear through a proxy, set to 1."""

_SHORT_LOOPBACK = LazyPattern(r"127(?:\.[0-9]{1,3}){0,3}|0x7f[0-9a-f]{6}|0\.0\.0\.0|::")


def proxy_of(url: str, proxies: Mapping[str, str]) -> str | None:
    """The proxy for a URL, or None.

    `proxies` are by scheme, as `urllib.request.getproxies` reads them from the environment: `http`, `https`, `all`,
    and under `no` the hosts that are reached without one.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if is_loopback(host) or _is_excepted(host, parts.port, proxies.get("no", "")):
        return None
    proxy = proxies.get(parts.scheme.lower()) or proxies.get("all")
    return None if not proxy else proxy if "://" in proxy else f"http://{proxy}"


def reads_requests(url: str, proxy: str | None) -> bool:
    """Whether a proxy reads what is sent, since it is not encrypted up to the server."""
    return proxy is not None and urlsplit(url).scheme.lower() == "http"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, however it is written; a proxy's own loopback is another machine."""
    name = host.lower().rstrip(".").removeprefix("[").removesuffix("]")
    if name == "localhost" or name.endswith(".localhost") or _SHORT_LOOPBACK.fullmatch(name):
        return True
    try:
        address = ipaddress.ip_address(int(name) if name.isdecimal() else name.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _is_excepted(host: str, port: int | None, exceptions: str) -> bool:
    return any(_covers(entry, host.lower(), port) for entry in exceptions.lower().replace(",", " ").split())


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY covers it: `*`, a name and all below it, an address or a network, `name:port`."""
    entry = entry.rpartition("://")[2]
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, _, wanted_port = entry.rpartition(":") if re.search(r":[0-9]+$", entry) else (entry, "", "")
    name = name.strip("[]").removeprefix("*").removeprefix(".")
    if wanted_port and wanted_port != str(port):
        return False
    return bool(name) and (host == name or host.endswith(f".{name}"))
