"""An alert as JSON."""

from __future__ import annotations

import json

from msgspec import structs

from crashproof.alerts.content import AlertContent

__all__ = ["as_json"]


def as_json(content: AlertContent) -> bytes:
    """One JSON object in ASCII; lone surrogates, which UTF-8 cannot hold, are escaped like the rest."""
    return json.dumps(structs.asdict(content)).encode()
