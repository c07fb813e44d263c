"""A toy tokenizer."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

from crashproof.rules.requests import JsonObject

__all__ = ["num_tokens", "some_logprobs", "some_text", "tokens_of"]

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")
_IS_NOT_SAID = {"id", "role", "tool_call_id", "type"}
_VOCABULARY = (
    "ship anchor tide harbour rope sail keel deck mast wind wave shore reef gull lamp bell chart star compass "
    "crew captain storm calm night dawn salt oak iron brass cloth line knot hold fast drift turn rise fall "
    "carry keep count watch wait find lose mend light heavy deep shallow north south east west long short "
    "green grey white old new"
)
_WORDS = _VOCABULARY.split()


def tokens_of(text: str) -> list[str]:
    """Split into words and marks, each with the space before it: none is empty, and joined they are the text."""
    return _TOKEN.findall(text)


def num_tokens(said: object) -> int:
    """Count the tokens of all texts in a value such as messages or tools; never more than their bytes."""
    if isinstance(said, str):
        return len(_TOKEN.findall(said))
    if isinstance(said, list):
        return sum(map(num_tokens, said))
    if isinstance(said, dict):
        return sum(num_tokens(each) for name, each in said.items() if name not in _IS_NOT_SAID)
    return 0


def some_text(request_hash: str, choice: int) -> str:
    """The default answer: 20 to 31 words derived from the request."""
    drawn = hashlib.sha256(f"{request_hash}:{choice}".encode()).digest()
    words = [_WORDS[byte % len(_WORDS)] for byte in drawn[1 : 21 + drawn[0] % 12]]
    return " ".join(words).capitalize() + "."


def some_logprobs(tokens: Sequence[str], request_hash: str, num_top: int) -> list[JsonObject]:
    """OpenAI's `logprobs.content`, derived from the request; each token is the most likely one at its place."""
    return [_logprobs_at(f"{request_hash}:{place}", token, num_top) for place, token in enumerate(tokens)]


def _logprobs_at(place: str, token: str, num_top: int) -> JsonObject:
    drawn = hashlib.sha256(place.encode()).digest()
    chance = (128 + drawn[0] % 112) / 256
    others = [" " + _WORDS[(drawn[1] + step) % len(_WORDS)] for step in range(num_top)]
    ranked = [token, *(other for other in others if other != token)][:num_top]
    # Each of the others gets half of the rest, so that the sum stays below 1.
    top = [_entry(each, (1 - chance) / 2**rank if rank else chance) for rank, each in enumerate(ranked)]
    return {**_entry(token, chance), "top_logprobs": top}


def _entry(token: str, chance: float) -> JsonObject:
    return {"token": token, "logprob": math.log(chance), "bytes": list(token.encode(errors="surrogatepass"))}
