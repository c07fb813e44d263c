"""The tokens that tell one offered name from the others."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["allowed_next"]


def allowed_next(chosen: Sequence[int], offered: Sequence[Sequence[int]]) -> list[list[int]]:
    """What may follow, at each token of the chosen spelling, if only offered spellings may be written.

    This is the trie of the spellings, walked along one of them. The product over the tokens of p(token | what may
    stand here) is then the probability of the chosen name among the offered ones.

    Args:
        chosen: One of `offered`.
        offered: The tokens of the same text with each name in its place, each up to the token that ends the name:
            no one may be the beginning of another.

    Returns:
        For each token of `chosen`, sorted ids; it is one of them.
    """
    alive = list(offered)
    allowed = []
    for place, token in enumerate(chosen):
        alive = [spelling for spelling in alive if len(spelling) > place]
        allowed.append(sorted({spelling[place] for spelling in alive}))
        alive = [spelling for spelling in alive if spelling[place] == token]
    return allowed
