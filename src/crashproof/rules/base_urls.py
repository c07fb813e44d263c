"""What a base URL means."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from crashproof.errors import RequestError
from crashproof.rules.secrets.names import NameKind, kind_of_name
from crashproof.rules.secrets.proxies import is_loopback
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["canonical_base_url", "completions_url"]

_COMPLETIONS = "/chat/completions"
_OTHER_APIS = ("/responses", "/completions", "/messages", "/embeddings", "/models", "/api/chat", "/api/generate")
"""Endings of addresses that people copy, of APIs that are not chat completions."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL_EXAMPLE = "For example https://api.openai.com/v1."


# A job of a million prompts asks for one address a million times.
@lru_cache(maxsize=64)
def canonical_base_url(base_url: str) -> str:
    """A base URL in the form that is compared and stored: without a trailing slash, and without `/chat/completions`.

    A query, such as Azure's `?api-version=…`, belongs to it.

    Raises:
        RequestError: it is no HTTP URL, holds a password or a key, or leads to another API.
    """
    base_url = base_url.strip()
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        # An unreadable URL may hold a password anywhere.
        raise RequestError("The base URL cannot be parsed.", hint=_URL_EXAMPLE) from None
    if parts.scheme.lower() not in _DEFAULT_PORTS or not parts.hostname:
        raise _not_http(base_url)
    _check_secrets(parts)
    scheme, host = parts.scheme.lower(), parts.hostname.lower()
    host = f"[{host}]" if ":" in host else host
    netloc = host if port in (None, _DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    query = urlencode(sorted(parse_qsl(parts.query, keep_blank_values=True)))
    return urlunsplit((scheme, netloc, _base_path(parts, f"{scheme}://{netloc}"), query, ""))


def completions_url(base_url: str) -> str:
    """The address of chat completions under a canonical base URL."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=f"{parts.path}{_COMPLETIONS}"))


def _base_path(parts: SplitResult, origin: str) -> str:
    path = parts.path.rstrip("/")
    if path.lower().endswith(_COMPLETIONS):
        return path[: -len(_COMPLETIONS)].rstrip("/")
    for ending in _OTHER_APIS:
        if path.lower().endswith(ending):
            base = path[: -len(ending)] or "/v1"
            raise RequestError(
                f"The base URL ends in {ending}, which is another API than chat completions.",
                hint=f"Give the part before it, such as {origin}{base}.",
            )
    return path


def _not_http(base_url: str) -> RequestError:
    is_shown = not set("@?#") & set(base_url)
    shown = f" {base_url!r}" if is_shown else ""
    hint = _URL_EXAMPLE
    if is_shown and base_url and "://" not in base_url:
        host = urlsplit(f"//{base_url}").hostname or ""
        hint = f"Write {'http' if is_loopback(host) else 'https'}://{base_url}."
    return RequestError(f"The base URL{shown} is not an HTTP URL.", hint=hint)


def _check_secrets(parts: SplitResult) -> None:
    if parts.username or parts.password:
        raise RequestError(
            "The base URL contains a user name or password, which would be stored.",
            hint="Pass the key as api_key, or a header of your own as --header NAME=env:VAR.",
        )
    if parts.fragment:
        raise RequestError(f"The base URL of {parts.hostname} has a fragment.", hint="Remove everything from the #.")
    for name, value in parse_qsl(parts.query):
        if kind_of_name(name) is not NameKind.HARMLESS or without_secrets(f"{name}={value}") != f"{name}={value}":
            raise RequestError(
                f"{name} in the base URL of {parts.hostname} may be a secret, and would be stored.",
                hint=f"Pass it as --query {name}=env:VAR.",
            )
    if without_secrets(parts.path) != parts.path:
        raise RequestError(
            f"The base URL of {parts.hostname} contains what looks like a key, which would be stored.",
            hint="Pass the key as api_key.",
        )
