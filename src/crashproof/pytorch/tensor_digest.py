"""Digests of tensors and texts on the host."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["sha256_of", "short_digest"]

_DIGITS = 16


def sha256_of(*parts: Tensor | str) -> str:
    """The digest of tensors on the CPU and texts in their order, each with its kind and size."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            encoded = part.encode("utf-8", "backslashreplace")
            digest.update(f"text {len(encoded)} ".encode() + encoded)
        else:
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            digest.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def short_digest(sha256: str) -> str:
    """A digest as it is shown, and as processes compare it: 64 bits of it."""
    return f"sha256 {sha256[:_DIGITS]}"
