"""Digests that name their algorithm.

A digest is `<algorithm>:<hexadecimal>`, such as `blake3:af1349b9…`. Whoever reads it knows how it was computed, and
whether this version can compute it: one by an algorithm of a later version proves nothing here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["BLAKE3", "SHA256", "RunningDigest", "algorithm_of", "hexadecimal_of", "is_known", "named"]

BLAKE3 = "blake3"
"""Of all that is recorded now: a quarter of the time of SHA-256, and as hard to forge."""
SHA256 = "sha256"
"""Of checkpoints that were recorded before digests named their algorithm, and of what identifies a run's inputs."""


class _Hasher(Protocol):
    def update(self, content: ReadableBuffer, /) -> object: ...

    def hexdigest(self) -> str: ...


_HASHERS: dict[str, Callable[[], _Hasher]] = {BLAKE3: blake3, SHA256: hashlib.sha256}


class RunningDigest:
    """The digest of bytes that come piece by piece. Other threads run while a large piece is digested."""

    def __init__(self, algorithm: str = BLAKE3) -> None:
        self._algorithm = algorithm
        self._hasher = _HASHERS[algorithm]()
        self.update = self._hasher.update

    def result(self) -> str:
        """The digest of all bytes so far."""
        return named(self._algorithm, self._hasher.hexdigest())


def named(algorithm: str, hexadecimal: str) -> str:
    """A digest with the name of its algorithm."""
    return f"{algorithm}:{hexadecimal}"


def algorithm_of(digest: str) -> str:
    """The name of the algorithm."""
    return digest.partition(":")[0]


def hexadecimal_of(digest: str) -> str:
    """A digest without the name of its algorithm."""
    return digest.partition(":")[2]


def is_known(algorithm: str) -> bool:
    """Whether this version can compute digests of an algorithm."""
    return algorithm in _HASHERS
