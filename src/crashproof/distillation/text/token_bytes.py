"""The bytes of each token.

Two tokenizers can spell the same token differently and different tokens alike: what a byte-level vocabulary calls
`Ġthe`, a SentencePiece one calls `▁the`, and both mean the four bytes `b" the"`. So tokens are compared by bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from transformers import PreTrainedTokenizerFast

from crashproof.errors import ModelMismatch

__all__ = ["BytesToIds", "TokenBytes", "TokenDifference", "bytes_of_byte_level", "first_difference", "token_bytes"]

_SPACE_MARK = "▁"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    """The bytes that one token adds to a text."""

    content: bytes
    """The bytes; for a special token, its name in UTF-8."""
    is_special: bool = False
    """A mark such as the end of text; text that spells its name does not contain it."""
    is_fallback: bool = False
    """A single byte that no other token covers, such as `<0x0A>`."""

    def __str__(self) -> str:
        if self.is_special:
            return f"the special token {self.content.decode()}"
        return f"{self.content!r} as a fallback" if self.is_fallback else repr(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDifference:
    """A token id with different meanings in two vocabularies."""

    token: int
    there: TokenBytes | None
    here: TokenBytes | None

    def __str__(self) -> str:
        return f"token {self.token} is {self.there or 'nothing'} there and {self.here or 'nothing'} here"


class BytesToIds:
    """Ids of one vocabulary by the bytes of their tokens."""

    def __init__(self, tokens: Sequence[TokenBytes | None]) -> None:
        """Index the tokens but special ones; of equal bytes the lowest id wins, and fallbacks come last."""
        self._ids: dict[bytes, int] = {}
        for is_fallback in (False, True):
            for number, token in enumerate(tokens):
                if token is not None and not token.is_special and token.is_fallback is is_fallback:
                    self._ids.setdefault(token.content, number)

    def find(self, content: bytes) -> int | None:
        """The id of the token with exactly these bytes, or None."""
        return self._ids.get(content)


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[TokenBytes | None]:
    """The bytes of each id of a tokenizer; None for an unused id.

    A SentencePiece decoder drops one space at the beginning of a text; the bytes here include it.

    Raises:
        ModelMismatch: The tokenizer is neither byte-level nor SentencePiece, so the bytes are unknown.
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


def bytes_of_byte_level(text: str) -> bytes | None:
    """The bytes that a byte-level vocabulary spells in this way (`Ġthe`); None if the text is spelled as it is."""
    if text.isascii() or not all(character in _BYTE_OF_CHARACTER for character in text):
        return None
    return bytes(_BYTE_OF_CHARACTER[character] for character in text)


def first_difference(there: Sequence[TokenBytes | None], here: Sequence[TokenBytes | None]) -> TokenDifference | None:
    """The lowest id with different meanings, or None."""
    for number, (one, other) in enumerate(zip_longest(there, here)):
        if one != other:
            return TokenDifference(token=number, there=one, here=other)
    return None


def _reader_of(tokenizer: dict[str, Any], name: str) -> Callable[[str], TokenBytes]:
    """The function that decodes the spelling of this kind of tokenizer."""
    kinds = set(_kinds(tokenizer.get("pre_tokenizer"))) | set(_kinds(tokenizer.get("decoder")))
    has_fallback = "ByteFallback" in kinds or bool(tokenizer["model"].get("byte_fallback"))
    if "ByteLevel" in kinds:
        return _read_byte_level
    if "Metaspace" in kinds or has_fallback:
        return _read_piece_or_fallback if has_fallback else _read_piece
    raise ModelMismatch(
        f"The tokenizer {name or 'in memory'} is neither byte-level nor SentencePiece, so the bytes of its "
        "tokens are unknown.",
        hint="Use models with a byte-level or SentencePiece tokenizer.",
    )


def _kinds(part: dict[str, Any] | None) -> Iterator[str]:
    """The types of a pre-tokenizer or decoder and of its parts."""
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
    # The decoder leaves such a token as it is, too.
    return TokenBytes(content=text.encode())


def _read_piece_or_fallback(text: str) -> TokenBytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return TokenBytes(content=bytes([int(text[3:5], 16)]), is_fallback=True)
        except ValueError:
            pass  # A piece that only looks like a fallback.
    return _read_piece(text)


def _read_piece(text: str) -> TokenBytes:
    return TokenBytes(content=text.replace(_SPACE_MARK, " ").encode())
