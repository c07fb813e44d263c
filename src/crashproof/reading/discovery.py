"""Find the runs under a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from crashproof.disk.run_folder import RunFolder

__all__ = ["find_runs"]

_DEEPEST = 8


def find_runs(root: Path, *, deepest: int = _DEEPEST) -> Iterator[tuple[str, RunFolder]]:
    """Every run under `root`, with its path relative to it (`.` for `root` itself), sorted by path.

    Looks `deepest` folders down, never through a symbolic link, and not inside a run: what lies there is its own.
    A folder that cannot be listed is passed over.
    """
    yield from _found(Path(os.path.abspath(root)), "", deepest)


def _found(folder: Path, name: str, levels: int) -> Iterator[tuple[str, RunFolder]]:
    run = RunFolder.under(folder)
    if not run.progress.is_symlink() and run.holds_a_run:
        yield name or ".", run
        return
    if levels == 0:
        return
    try:
        with os.scandir(folder) as entries:
            children = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
    except OSError:
        return
    for child in children:
        if not child.startswith("."):
            yield from _found(folder / child, f"{name}/{child}" if name else child, levels - 1)
