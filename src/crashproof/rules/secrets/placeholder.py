"""What stands in place of a secret.

In a config, the place of a long secret also holds four digits of its SHA-256, so that a new secret is noticed. They
tell at most 16 bits: whoever reads the run can rule out guesses, and never confirm one (of a billion guesses, 15,000
fit). A short secret gets none, since 16 bits are much of it; a change of it is not noticed. A salt would not help: it
would have to lie in the run, beside the digits.

A value that was hidden to be on the safe side, such as `token=word`, may be a setting. It has another placeholder,
which always holds digits, so that a change of it counts. A short one has two: a weak secret would leave one in 256 of
all guesses, and one change in 256 is missed.
"""

from __future__ import annotations

import hashlib

from crashproof.patterns import LazyPattern

__all__ = [
    "HIDDEN",
    "PLACEHOLDER",
    "hidden",
    "hidden_with_digest",
    "without_digests",
    "without_digests_of_credentials",
]

HIDDEN = "(secret)"
PLACEHOLDER = LazyPattern(r"\((?:secret(?: [0-9a-f]{4})?|hidden [0-9a-f]{2}(?:[0-9a-f]{2})?)\)")
_OF_CREDENTIAL = LazyPattern(r"\(secret(?: [0-9a-f]{4})?\)")
_LEAST_CHARACTERS = 16
_LEAST_DIFFERENT = 8


def hidden(secret: str, *, is_certain: bool = True) -> str:
    """The placeholder in texts, which says nothing of the secret."""
    return HIDDEN


def hidden_with_digest(secret: str, *, is_certain: bool = True) -> str:
    """The placeholder in configs, of what certainly is a secret or of what may be a setting."""
    digits = hashlib.sha256(b"crashproof secret\0" + secret.encode("utf-8", "backslashreplace")).hexdigest()
    is_short = len(secret) < _LEAST_CHARACTERS or len(set(secret)) < _LEAST_DIFFERENT
    if not is_certain:
        return f"(hidden {digits[: 2 if is_short else 4]})"
    return HIDDEN if is_short else f"(secret {digits[:4]})"


def without_digests(text: str) -> str:
    """A text with all its placeholders alike."""
    return PLACEHOLDER.sub(HIDDEN, text)


def without_digests_of_credentials(text: str) -> str:
    """A text in which the placeholders of certain secrets are alike."""
    return _OF_CREDENTIAL.sub(HIDDEN, text)
