"""Decoders that are built at their first use.

Those of the core take about 3 ms, and a new run reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

__all__ = ["LazyDecoder"]

T = TypeVar("T")


class LazyDecoder(Generic[T]):
    """A decoder of JSON that costs nothing until it is used; its parts are those of `msgspec.json.Decoder`."""

    def __init__(self, kind: Any) -> None:
        """Take what is decoded: a class, or a union of classes."""
        self.type = kind

    @cached_property
    def decode(self) -> Callable[[bytes], T]:
        """The function that decodes one value."""
        decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(self.type)
        return decoder.decode
