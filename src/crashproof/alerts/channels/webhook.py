"""Post alerts to a webhook."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import ClassVar, Self, TypeGuard
from urllib.parse import urlsplit

from crashproof.alerts.channels.ascii_json import as_json
from crashproof.alerts.channels.base import AlertChannel
from crashproof.alerts.content import AlertContent
from crashproof.errors import ConfigError

__all__ = ["Webhook"]

_ADDRESS_CHARACTERS = frozenset(string.ascii_letters + string.digits + string.punctuation)


@dataclass(frozen=True, kw_only=True)
class Webhook(AlertChannel):
    """Posts each alert as JSON to an http(s) address."""

    name: ClassVar[str] = "webhook"
    is_secret: ClassVar[bool] = True
    takes_variable: ClassVar[bool] = True

    address: str = field(repr=False)
    response_seconds: float = 10.0
    limit_seconds: float = 35.0
    """Three attempts with their pauses; a server may also send its response one byte at a time."""

    @classmethod
    def from_setting(cls, setting: object) -> Self | None:
        """The webhook at an address."""
        if setting is None:
            return None
        if not _is_address(setting):
            raise ConfigError(
                f"{cls.name} is not an http(s) address.", hint="Write it like https://example.org/hook."
            )
        return cls(address=setting)

    @property
    def setting(self) -> str:
        """The address."""
        return self.address

    def send(self, content: AlertContent) -> None:
        """Post the alert."""
        # Only the process that sends pays for the import of an HTTP client.
        from crashproof.alerts.channels.http_post import post_json

        post_json(self.address, self._payload(content), response_seconds=self.response_seconds)

    def _payload(self, content: AlertContent) -> bytes:
        return as_json(content)


def _is_address(setting: object) -> TypeGuard[str]:
    if not isinstance(setting, str) or not set(setting) <= _ADDRESS_CHARACTERS:
        return False
    try:
        parts = urlsplit(setting)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
