"""A teacher's base URL, API key and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from crashproof.errors import ConfigError
from crashproof.rules.base_urls import canonical_base_url
from crashproof.rules.secrets.known import KnownSecrets
from crashproof.rules.secrets.names import is_secret_text
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["OPENAI_BASE_URL", "Endpoint"]

OPENAI_BASE_URL = "https://api.openai.com/v1"

_FROM_ENVIRONMENT = "env:"
_NO_HEADER = re.compile(r"[^\x21-\x7e]")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_HEADER_VALUE = re.compile(r"[^\x20-\x7e\t]|^[\s]|[\s]$")
_SET_BY_CRASHPROOF = frozenset(
    {"connection", "content-length", "content-type", "host", "idempotency-key", "transfer-encoding"}
)
_CARRY_KEYS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key", "ocp-apim-subscription-key"})
"""Headers that take the place of the API key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible API.

    Raises:
        ConfigError: the key, or a header, contains characters that an HTTP header cannot hold.
        RequestError: the base URL cannot be used.
    """

    base_url: str = OPENAI_BASE_URL
    """Up to the part before `/chat/completions`; may have a query, such as `?api-version=…`."""
    api_key: str | None = field(default=None, repr=False)
    """None for a server without authentication."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request."""
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent too; their values are hidden wherever a server repeats them."""
    secret_query: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to the address of every request, and hidden likewise."""

    def __post_init__(self) -> None:
        if self.api_key is not None and _NO_HEADER.search(self.api_key):
            raise ConfigError(
                "The API key contains a space, a line break or a non-ASCII character.", hint="Check OPENAI_API_KEY."
            )
        for name, value in (*self.headers.items(), *self.secret_headers.items()):
            _check_header(name, value)
        canonical_base_url(self.base_url)

    @classmethod
    def of(
        cls,
        environment: Mapping[str, str],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        needs_key: bool = True,
    ) -> Endpoint:
        """Fill in what is not given from `OPENAI_BASE_URL` and `OPENAI_API_KEY` of an environment.

        A value of `headers` may be `env:VAR`, for that variable; one of `query` must be. A header that carries a key,
        such as `api-key`, takes the place of `OPENAI_API_KEY`.

        Raises:
            ConfigError: OpenAI's own API without a key; a header that HTTP cannot hold; a variable that is not set; a
                secret in clear.
        """
        url = base_url or environment.get("OPENAI_BASE_URL") or OPENAI_BASE_URL
        plain, secret = _read_headers(headers or {}, environment)
        has_own_key = not _CARRY_KEYS.isdisjoint(name.lower() for name in secret)
        # The key of one provider is not for the eyes of another.
        usual = None if has_own_key else environment.get("OPENAI_API_KEY")
        key = (api_key or usual or "").strip()
        if needs_key and not key and not has_own_key and url.rstrip("/") == OPENAI_BASE_URL:
            raise ConfigError(
                "No API key is set.", hint="Set OPENAI_API_KEY, or name another server with OPENAI_BASE_URL."
            )
        return cls(
            base_url=url,
            api_key=key or None,
            headers=plain,
            secret_headers=secret,
            secret_query={name: _from_environment(name, value, environment) for name, value in (query or {}).items()},
        )

    @property
    def has_key_in_header(self) -> bool:
        """Whether a header takes the place of the API key."""
        return not _CARRY_KEYS.isdisjoint(name.lower() for name in self.secret_headers)

    @property
    def has_secrets(self) -> bool:
        """Whether anything that is sent must not be read on the way."""
        return self.api_key is not None or bool(self.secret_headers) or bool(self.secret_query)

    def all_headers(self) -> dict[str, str]:
        """The headers of every request."""
        key = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {**key, **self.headers, **self.secret_headers}

    def hide_key(self, text: str, *, longest: int | None = None) -> str:
        """Redact this key, and anything that looks like a secret, from a foreign text before it is logged or stored.

        The text is cut to `longest` characters afterwards: half a key would not be recognized.
        """
        return without_secrets(self._secrets.hide(text))[:longest]

    def without_key(self, body: bytes) -> bytes:
        """Redact this key from the body of a response, however it is escaped there."""
        return self._secrets.hide_in_body(body)

    @property
    def _secrets(self) -> KnownSecrets:
        values = (*self.secret_headers.values(), *self.secret_query.values())
        bare = (value.partition(" ")[2] for value in values if value.lower().startswith(("bearer ", "basic ")))
        return _known_secrets((self.api_key or "", *values, *bare))


def _read_headers(
    headers: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The headers that may be shown, and those that may not."""
    plain, secret = {}, {}
    for name, value in headers.items():
        if value.startswith(_FROM_ENVIRONMENT):
            secret[name] = _from_environment(name, value, environment)
        elif name.lower() in _CARRY_KEYS or is_secret_text(name, value) or without_secrets(value) != value:
            raise ConfigError(
                f"The header {name} is a secret, and is given in clear.",
                hint=f"Put it into an environment variable, and write env:VAR as the value of {name}.",
            )
        else:
            plain[name] = value
    return plain, secret


def _from_environment(name: str, value: str, environment: Mapping[str, str]) -> str:
    if not value.startswith(_FROM_ENVIRONMENT):
        raise ConfigError(
            f"{name} of the query is not env:VAR.",
            hint="Put a secret into an environment variable; anything else belongs into the base URL.",
        )
    variable = value.removeprefix(_FROM_ENVIRONMENT)
    found = environment.get(variable, "").strip()
    if not found:
        raise ConfigError(f"{name} is {value}, and {variable or 'that variable'} is not set.", hint="Set it.")
    return found


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not the name of a header.", hint="Write it as NAME=VALUE.")
    if name.lower() in _SET_BY_CRASHPROOF:
        raise ConfigError(f"The header {name} is set by crashproof itself.", hint="Leave it out.")
    if _NO_HEADER_VALUE.search(value):
        raise ConfigError(
            f"The value of the header {name} contains a line break, a non-ASCII character, or a space at an end.",
            hint="Check the value.",
        )


@lru_cache(maxsize=16)
def _known_secrets(secrets: tuple[str, ...]) -> KnownSecrets:
    return KnownSecrets(secrets)
