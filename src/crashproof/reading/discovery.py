"""Find the runs under a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crashproof.disk.regular_file import kind_in_words
from crashproof.disk.run_folder import RunFolder
from crashproof.formatting import as_text

__all__ = ["RunSearch", "SkippedFolder", "find_runs", "path_outside"]

_DEEPEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedFolder:
    """A folder that was not searched, or something in its place."""

    name: str
    """Its path relative to the searched folder."""
    reason: str


def find_runs(root: Path, *, deepest: int = _DEEPEST) -> Iterator[tuple[str, RunFolder]]:
    r"""Yield every run under `root` with its relative path (`.` for `root` itself), sorted by path.

    Searches `deepest` levels down, through no symbolic link that leads out of `root`, and never inside a run. Skips
    folders that cannot be listed. Bytes of a path that are not UTF-8 are written as `\udcff`, for every terminal.
    """
    for name, run in RunSearch(root, deepest=deepest).runs.items():
        yield as_text(name), run


class RunSearch:
    """The runs under a folder as of one moment, and the folders that were not searched for them.

    A link inside the folder is not followed: what it leads to is found where it lies. One that leads out is followed
    only if `follows_links`.
    """

    def __init__(self, root: Path, *, deepest: int = _DEEPEST, follows_links: bool = False) -> None:
        self.boundary = Path(os.path.realpath(root))
        """The folder itself, which no link of its path can change."""
        self.skipped: list[SkippedFolder] = []
        self.odd: list[SkippedFolder] = []
        """What lies in the folder itself and can be no run: a link that leads nowhere, a pipe, a device."""
        self._follows_links = follows_links
        self._links: list[tuple[Path, str, int]] = []
        found = dict(self._search(Path(os.path.abspath(root)), "", deepest))
        if follows_links:
            found |= self._search_links({os.path.realpath(run.progress) for run in found.values()})
        else:
            reason = "a link that leads out of the served folder"
            self.skipped += [SkippedFolder(name=name, reason=reason) for _, name, _ in self._links]
        self.runs = {name: found[name] for name in sorted(found, key=lambda each: each.split("/"))}
        """By their relative paths, sorted; `.` is the folder itself."""

    def _search(self, folder: Path, name: str, levels: int) -> Iterator[tuple[str, RunFolder]]:
        run = RunFolder.under(folder)
        if self._may_read(run.progress) and _holds_a_run(run):
            yield name or ".", run
            return
        if levels == 0:
            return
        for child, is_link in self._children(folder, name):
            path, child_name = folder / child, f"{name}/{child}" if name else child
            if not is_link:
                yield from self._search(path, child_name, levels - 1)
            elif os.path.isdir(path) and not _is_inside(path, self.boundary):
                self._links.append((path, child_name, levels - 1))

    def _search_links(self, known: set[str]) -> dict[str, RunFolder]:
        """Search where links lead, each folder once; that finds more links."""
        found: dict[str, RunFolder] = {}
        searched: set[str] = set()
        for path, name, levels in self._links:
            target = os.path.realpath(path)
            if target in searched:
                continue
            searched.add(target)
            for run_name, run in self._search(path, name, levels):
                progress = os.path.realpath(run.progress)
                if progress not in known:
                    known.add(progress)
                    found[run_name] = run
        return found

    def _children(self, folder: Path, name: str) -> list[tuple[str, bool]]:
        """The folders and links in a folder, without hidden ones: each name, and whether it is a link."""
        try:
            with os.scandir(folder) as entries:
                visible = sorted((each for each in entries if not each.name.startswith(".")), key=lambda e: e.name)
                if not name:
                    found = ((each.name, _oddity(each)) for each in visible)
                    self.odd += [SkippedFolder(name=child, reason=reason) for child, reason in found if reason]
                return [
                    (each.name, each.is_symlink())
                    for each in visible
                    if each.is_symlink() or each.is_dir(follow_symlinks=False)
                ]
        except OSError as error:
            self.skipped.append(SkippedFolder(name=name or ".", reason=os.strerror(error.errno or 0).lower()))
            return []

    def _may_read(self, progress: Path) -> bool:
        if os.path.islink(progress) and not os.path.exists(progress):
            # The run is elsewhere, and not there now. It is listed with this reason.
            return True
        return self._follows_links or not os.path.islink(progress) or _is_inside(progress, self.boundary)


def path_outside(run: RunFolder, boundary: Path) -> Path | None:
    """Return the first file of a run that lies outside `boundary` because of a link; None if all lie inside."""
    files = (
        *(run.events, run.metrics, run.curves, run.coarse_curves, run.requests, run.answers),
        *(run.session, run.summary, run.manifest, run.lock),
    )
    paths = [run.progress, *(each for each in files if each.is_symlink())]
    return next((each for each in paths if not _is_inside(each, boundary)), None)


def _oddity(entry: os.DirEntry[str]) -> str | None:
    """Why something can be no run; None for folders, files and links to them."""
    try:
        mode = os.stat(entry.path).st_mode
    except FileNotFoundError:
        return "it is a link that leads nowhere"
    except OSError as error:
        return os.strerror(error.errno or 0).lower()
    return None if stat.S_ISDIR(mode) or (kind := kind_in_words(mode)) is None else f"it is {kind}, not a folder"


def _is_inside(path: Path, boundary: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(boundary)


def _holds_a_run(run: RunFolder) -> bool:
    try:
        if run.holds_a_run or (os.path.islink(run.progress) and not run.progress.exists()):
            return True
        # An emptied progress folder beside checkpoints.
        return run.progress.is_dir() and bool(run.own_checkpoints())
    except OSError:
        # Its files cannot be looked at. As a run it is listed with the reason.
        return True
