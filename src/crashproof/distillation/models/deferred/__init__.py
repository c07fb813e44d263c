"""Weights that stay in their file, or undrawn, until a process needs its part of them."""

from __future__ import annotations

__all__: list[str] = []
