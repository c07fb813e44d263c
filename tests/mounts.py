"""Mounts of a test's own, which nothing outside its process sees."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache

_WAYS = (("unshare", "--mount"), ("unshare", "--map-root-user", "--mount"))
"""As root, or as anybody where the kernel lets users have namespaces."""


@cache
def _way() -> tuple[str, ...] | None:
    for way in _WAYS:
        trial = [*way, "sh", "-c", "mount -t tmpfs none /mnt"]
        if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            return way
    return None


def can_mount() -> bool:
    """Whether a process may mount something for itself here."""
    return _way() is not None


def with_mounts(script: str, command: Sequence[str]) -> list[str]:
    """A command that first runs a shell script of mounts, in a namespace of its own."""
    way = _way()
    assert way is not None
    return [*way, "sh", "-ec", f'{script}\nexec "$@"', "sh", *command]
