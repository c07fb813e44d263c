"""A teacher's base URL and API key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from crashproof.errors import ConfigError
from crashproof.rules.secrets.known import KnownSecrets
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["OPENAI_BASE_URL", "Endpoint"]

OPENAI_BASE_URL = "https://api.openai.com/v1"

_NO_HEADER = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible API.

    Raises:
        ConfigError: the key contains characters that an HTTP header cannot hold.
    """

    base_url: str = OPENAI_BASE_URL
    api_key: str | None = field(default=None, repr=False)
    """None for a server without authentication."""

    def __post_init__(self) -> None:
        if self.api_key is not None and _NO_HEADER.search(self.api_key):
            raise ConfigError(
                "The API key contains a space, a line break or a non-ASCII character.", hint="Check OPENAI_API_KEY."
            )

    @classmethod
    def of(
        cls,
        environment: Mapping[str, str],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        needs_key: bool = True,
    ) -> Endpoint:
        """Fill in what is not given from `OPENAI_BASE_URL` and `OPENAI_API_KEY` of an environment.

        Raises:
            ConfigError: OpenAI's own API without a key, or a key that an HTTP header cannot hold.
        """
        url = base_url or environment.get("OPENAI_BASE_URL") or OPENAI_BASE_URL
        key = (api_key or environment.get("OPENAI_API_KEY") or "").strip()
        if needs_key and not key and url.rstrip("/") == OPENAI_BASE_URL:
            raise ConfigError(
                "No API key is set.", hint="Set OPENAI_API_KEY, or name another server with OPENAI_BASE_URL."
            )
        return cls(base_url=url, api_key=key or None)

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
        return _known_secrets(self.api_key or "")


@lru_cache(maxsize=16)
def _known_secrets(key: str) -> KnownSecrets:
    return KnownSecrets([key])
