"""Trie of the tokens of tool names."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["allowed_next"]


def allowed_next(chosen: Sequence[int], offered: Sequence[Sequence[int]]) -> list[list[int]]:
    """The allowed ids at each token of the chosen name, if only offered names may be written.

    This walks the trie of the names along one of them. The product over the tokens of p(token | allowed ids) is the
    probability of the chosen name among the offered ones.

    Args:
        chosen: One of `offered`.
        offered: The tokens of the same text with each name in its place, each up to the token that ends the name:
            none may be a prefix of another.

    Returns:
        For each token of `chosen`, sorted ids; the token is one of them.
    """
    alive = list(offered)
    allowed = []
    for place, token in enumerate(chosen):
        alive = [spelling for spelling in alive if len(spelling) > place]
        allowed.append(sorted({spelling[place] for spelling in alive}))
        alive = [spelling for spelling in alive if spelling[place] == token]
    return allowed
