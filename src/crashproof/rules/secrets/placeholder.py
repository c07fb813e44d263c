"""What stands in place of a secret.

In a config, the place of a long secret also holds four digits of its SHA-256, so that a new secret is noticed. They
tell at most 16 bits: whoever reads the run can rule out guesses, and never confirm one (of a billion guesses, 15,000
fit). A short secret gets none, since 16 bits are much of it; a change of it is not noticed. A salt would not help: it
would have to lie in the run, beside the digits.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["HIDDEN", "PLACEHOLDER", "hidden", "hidden_with_digest", "without_digests"]

HIDDEN = "(secret)"
PLACEHOLDER = re.compile(r"\(secret(?: [0-9a-f]{4})?\)")
_LEAST_CHARACTERS = 16
_LEAST_DIFFERENT = 8


def hidden(secret: str) -> str:
    """The placeholder in texts, which says nothing of the secret."""
    return HIDDEN


def hidden_with_digest(secret: str) -> str:
    """The placeholder in configs."""
    if len(secret) < _LEAST_CHARACTERS or len(set(secret)) < _LEAST_DIFFERENT:
        return HIDDEN
    digest = hashlib.sha256(b"crashproof secret\0" + secret.encode("utf-8", "backslashreplace")).hexdigest()
    return f"(secret {digest[:4]})"


def without_digests(text: str) -> str:
    """A text with all its placeholders alike."""
    return PLACEHOLDER.sub(HIDDEN, text)
