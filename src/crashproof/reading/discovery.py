"""Find the runs under a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from crashproof.disk.run_folder import RunFolder
from crashproof.formatting import as_text

__all__ = ["find_runs"]


def find_runs(root: Path, *, deepest: int = 8) -> Iterator[tuple[str, RunFolder]]:
    r"""Yield every run under `root` with its relative path (`.` for `root` itself), sorted by path.

    Searches `deepest` levels down, never through a symbolic link and never inside a run. Skips folders that cannot be
    listed. Bytes of a path that are no UTF-8 are spelled out in it (`\udcff`), so that it is text for every reader.
    """
    for name, run in _find(Path(os.path.abspath(root)), "", deepest):
        yield as_text(name), run


def _find(folder: Path, name: str, levels: int) -> Iterator[tuple[str, RunFolder]]:
    run = RunFolder.under(folder)
    try:
        is_run = not run.progress.is_symlink() and run.holds_a_run
    except OSError:
        # Whoever reads it says why it cannot be read.
        is_run = os.path.lexists(run.progress)
    if is_run:
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
            yield from _find(folder / child, f"{name}/{child}" if name else child, levels - 1)
