"""Where a teacher is asked, and with which key."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec

from crashproof.errors import ConfigError
from crashproof.rules.identity import without_secrets

__all__ = ["OPENAI_BASE_URL", "Endpoint"]

OPENAI_BASE_URL = "https://api.openai.com/v1"

_NO_HEADER = re.compile(r"[^\x21-\x7e]")
_LEAST_SECRET_LENGTH = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible API.

    Raises:
        ConfigError: no HTTP header can hold the key.
    """

    base_url: str = OPENAI_BASE_URL
    api_key: str | None = field(default=None, repr=False)
    """None for a server that asks for none."""

    def __post_init__(self) -> None:
        if self.api_key is not None and _NO_HEADER.search(self.api_key):
            raise ConfigError(
                "The API key holds a space, a line break or a character beyond ASCII.", hint="Check OPENAI_API_KEY."
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
        """As given, or as `OPENAI_BASE_URL` and `OPENAI_API_KEY` of an environment say.

        Raises:
            ConfigError: no key for the provider's own address, or one that no HTTP header can hold.
        """
        url = base_url or environment.get("OPENAI_BASE_URL") or OPENAI_BASE_URL
        key = (api_key or environment.get("OPENAI_API_KEY") or "").strip()
        if needs_key and not key and url.rstrip("/") == OPENAI_BASE_URL:
            raise ConfigError(
                "There is no API key.", hint="Set OPENAI_API_KEY, or name another server with OPENAI_BASE_URL."
            )
        return cls(base_url=url, api_key=key or None)

    def hide_key(self, text: str, *, longest: int | None = None) -> str:
        """A text of somebody else's, for a log or a file: without this key, nor anything that looks like one.

        It is cut to `longest` characters once the key is hidden: of half a key, nobody sees that it is one.
        """
        if self.api_key is not None and len(self.api_key) >= _LEAST_SECRET_LENGTH:
            # Also as a page, an address or a JSON text spells it.
            key_in_json = msgspec.json.encode(self.api_key).decode()[1:-1]
            for spelled in (self.api_key, html.escape(self.api_key), quote(self.api_key, safe=""), key_in_json):
                text = text.replace(spelled, "***")
        return without_secrets(text[:longest])

    def without_key(self, body: bytes) -> bytes:
        """The body of an answer, without this key where a server repeats it."""
        if self.api_key is None or len(self.api_key) < _LEAST_SECRET_LENGTH:
            return body
        return body.replace(self.api_key.encode(), b"***")
