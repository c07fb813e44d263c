"""Tokenized data, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crashproof.disk.files import REAL_DISK
from crashproof.errors import CheckpointDamaged
from crashproof.pytorch.checkpoint_file import load_checkpoint, save_checkpoint

__all__ = ["cached_state"]


def cached_state(
    cache: Path, name: str, parts: tuple[object, ...], compute: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Load a state from `cache`, or compute and store it.

    Args:
        cache: A folder; created if needed.
        name: First part of the file's name.
        parts: Everything that determines the state; other parts are another file.
        compute: Called if the file is missing or damaged.
    """
    path = cache / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.pt"
    try:
        return load_checkpoint(path)
    except CheckpointDamaged:
        REAL_DISK.make_folders(cache)
        save_checkpoint(path, compute())
        return load_checkpoint(path)
