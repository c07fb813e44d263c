"""Log-probabilities as servers send them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crashproof.distillation.text.token_bytes import bytes_of_byte_level
from crashproof.teacher.client.logprobs import entries_of

__all__ = ["UNKNOWN_CHARACTER", "TokenLogprob", "read_logprobs"]

UNKNOWN_CHARACTER = "\ufffd"
"""What servers write for a part of a character."""

_LEAST_LOGPROB = -9_000.0
"""Servers write -9999 for what they do not know, which as a probability is 0."""
_ESCAPED_BYTE = re.compile(r"\\x([0-9a-fA-F]{2})")
_VOCABULARY_MARKS = frozenset("ĠĊ▁")
"""Space, line feed and space in the spelling of vocabularies."""
_TOKEN_ID = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token of an answer, or one alternative to it."""

    spellings: tuple[bytes, ...]
    """The bytes that it can mean, the likeliest first; empty if it is given by its id."""
    logprob: float | None
    """None if the server does not know it."""
    token_id: int | None = None
    """As vLLM writes it on request, `token_id:123`."""
    is_part_of_character: bool = False
    """It shows U+FFFD, which a text rarely contains."""
    alternatives: tuple[TokenLogprob, ...] = ()
    """The most likely tokens at its place."""


def read_logprobs(sent: object) -> list[TokenLogprob] | None:
    """Read the tokens of an answer in any form that servers send, or None if there are none.

    Raises:
        ValueError: An entry names no token.
    """
    entries = entries_of(sent)
    return [_read_token(entry) for entry in entries] if entries else None


def _read_token(entry: object, *, is_alternative: bool = False) -> TokenLogprob:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("token"), str):
        raise ValueError("an entry of its log-probabilities names no token")
    token = entry["token"]
    alternatives = () if is_alternative else tuple(_alternatives(entry.get("top_logprobs")))
    given = _given_bytes(entry.get("bytes"))
    by_id = _TOKEN_ID.fullmatch(token)
    # Some servers compute the bytes from the text that they show.
    is_part = UNKNOWN_CHARACTER in token and (given is None or UNKNOWN_CHARACTER.encode() in given)
    return TokenLogprob(
        spellings=() if by_id else tuple(dict.fromkeys(_spellings(token, given))),
        logprob=_finite(entry.get("logprob")),
        token_id=int(by_id[1]) if by_id else None,
        is_part_of_character=is_part,
        alternatives=alternatives,
    )


def _alternatives(sent: object) -> Iterator[TokenLogprob]:
    """The alternatives, each once: some servers append the token that was taken a second time."""
    found = [_read_token(entry, is_alternative=True) for entry in (sent if isinstance(sent, list) else [])]
    yield from (each for each in dict.fromkeys(found) if each.logprob is not None)


def _given_bytes(sent: object) -> bytes | None:
    try:
        return bytes(sent) if isinstance(sent, list) else None
    except (TypeError, ValueError):
        return None


def _spellings(token: str, given: bytes | None) -> Iterator[bytes]:
    """What a token can mean: its bytes, else its text, plain or as a vocabulary spells it."""
    if given or (given is not None and not token):
        yield given
        return
    if token.startswith("bytes:"):
        yield bytes(int(byte, 16) for byte in _ESCAPED_BYTE.findall(token))
    plain, spelled = token.encode(errors="replace"), _as_vocabularies_spell(token)
    # Text rarely contains the marks of a vocabulary, so with them its spelling is the likelier one.
    yield from (spelled, plain) if _VOCABULARY_MARKS & {*token} else (plain, spelled)


def _as_vocabularies_spell(token: str) -> bytes:
    in_byte_level = bytes_of_byte_level(token)
    return token.replace("▁", " ").encode(errors="replace") if in_byte_level is None else in_byte_level


def _finite(value: object) -> float | None:
    """A usable log-probability; rounding takes some a little above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if not math.isfinite(value) or value < _LEAST_LOGPROB:
        return None
    return min(float(value), 0.0)
