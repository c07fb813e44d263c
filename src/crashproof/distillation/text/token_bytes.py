"""The bytes that each token stands for.

Two tokenizers can spell the same token differently and different tokens alike: what a byte-level vocabulary calls
`Ġthe`, a SentencePiece one calls `▁the`, and both mean the four bytes `b" the"`. So tokens are compared by these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from transformers import PreTrainedTokenizerFast

from crashproof.errors import ModelMismatch

__all__ = ["BytesToIds", "TokenBytes", "TokenDifference", "first_difference", "token_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    """What one token adds to a text."""

    content: bytes
    """Exactly these bytes; of a special token, its name in UTF-8."""
    is_special: bool = False
    """A mark such as the end of a text. A text that spells its name does not hold it."""
    is_fallback: bool = False
    """One byte, for where no other token reaches: `<0x0A>`."""

    def __str__(self) -> str:
        if self.is_special:
            return f"the special token {self.content.decode()}"
        return f"{self.content!r} as a fallback" if self.is_fallback else repr(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDifference:
    """A token id that means different things."""

    token: int
    there: TokenBytes | None
    here: TokenBytes | None

    def __str__(self) -> str:
        return f"token {self.token} is {self.there or 'nothing'} there and {self.here or 'nothing'} here"


class BytesToIds:
    """From the bytes of a token to its id in one vocabulary."""

    def __init__(self, tokens: Sequence[TokenBytes | None]) -> None:
        """Special tokens are left out; of others with the same bytes, the lowest id counts, a fallback's least."""
        self._ids: dict[bytes, int] = {}
        for is_fallback in (False, True):
            for number, token in enumerate(tokens):
                if token is not None and not token.is_special and token.is_fallback is is_fallback:
                    self._ids.setdefault(token.content, number)

    def find(self, content: bytes) -> int | None:
        """The id of the token that stands for exactly these bytes, or None."""
        return self._ids.get(content)


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[TokenBytes | None]:
    """What each id of a tokenizer stands for; None for an id that it does not use.

    A SentencePiece decoder leaves out one space at the very beginning of a text; the bytes here have it.

    Raises:
        ModelMismatch: the tokenizer is neither byte-level nor like SentencePiece's, so nobody can tell.
    """
    backend = tokenizer.backend_tokenizer
    spelled = backend.get_vocab(with_added_tokens=True)
    tokens: list[TokenBytes | None] = [None] * (max(spelled.values(), default=-1) + 1)
    read = _reader_of(json.loads(backend.to_str()), str(tokenizer.name_or_path))
    for text, number in spelled.items():
        tokens[number] = read(text)
    for number, added in backend.get_added_tokens_decoder().items():
        tokens[number] = TokenBytes(content=added.content.encode(), is_special=added.special)
    return tokens


def first_difference(there: Sequence[TokenBytes | None], here: Sequence[TokenBytes | None]) -> TokenDifference | None:
    """The lowest id that does not mean the same to both, or None."""
    for number, (one, other) in enumerate(zip_longest(there, here)):
        if one != other:
            return TokenDifference(token=number, there=one, here=other)
    return None


_SPACE_MARK = "▁"


def _reader_of(tokenizer: dict[str, Any], name: str) -> Callable[[str], TokenBytes]:
    """How this kind of tokenizer spells its tokens."""
    kinds = set(_kinds(tokenizer.get("pre_tokenizer"))) | set(_kinds(tokenizer.get("decoder")))
    has_fallback = "ByteFallback" in kinds or bool(tokenizer["model"].get("byte_fallback"))
    if "ByteLevel" in kinds:
        return _read_byte_level
    if "Metaspace" in kinds or has_fallback:
        return _read_piece_or_fallback if has_fallback else _read_piece
    raise ModelMismatch(
        f"The tokenizer {name or 'in memory'} is neither byte-level nor like SentencePiece's: the bytes of its "
        "tokens cannot be told.",
        hint="Use models with a byte-level or SentencePiece tokenizer.",
    )


def _kinds(part: dict[str, Any] | None) -> Iterator[str]:
    """The types of a pre-tokenizer or decoder, and of those that it is made of."""
    if part is None:
        return
    yield part["type"]
    for inner in (*part.get("pretokenizers", ()), *part.get("decoders", ())):
        yield from _kinds(inner)


def _byte_of_characters() -> dict[str, int]:
    """The alphabet of GPT-2: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_characters()


def _read_byte_level(text: str) -> TokenBytes:
    if all(character in _BYTE_OF_CHARACTER for character in text):
        return TokenBytes(content=bytes(_BYTE_OF_CHARACTER[character] for character in text))
    # The decoder, too, takes such a token as it is written.
    return TokenBytes(content=text.encode())


def _read_piece_or_fallback(text: str) -> TokenBytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return TokenBytes(content=bytes([int(text[3:5], 16)]), is_fallback=True)
        except ValueError:
            pass  # A piece that only looks like one.
    return _read_piece(text)


def _read_piece(text: str) -> TokenBytes:
    return TokenBytes(content=text.replace(_SPACE_MARK, " ").encode())
