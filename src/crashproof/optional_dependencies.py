"""Whether another package is there, in a version that fits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from crashproof.errors import MissingExtra

__all__ = ["is_installed", "require_versions"]


def is_installed(package: str) -> bool:
    """Whether it is, in whatever version."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def require_versions(extra: str, lowest: Mapping[str, str]) -> None:
    """Have each package in at least the version named for it.

    Raises:
        MissingExtra: one is not installed, or older.
    """
    for package, wanted in lowest.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise MissingExtra(extra) from None
        if _numbers(found) < _numbers(wanted):
            raise MissingExtra(extra, found=f"{package} {found}")


def _numbers(version_name: str) -> tuple[int, ...]:
    """Major and minor, which say what an interface is."""
    return tuple(int(number) for number in re.findall(r"\d+", version_name)[:2])
