"""Find the checkpoints of one run in its folder.

What is a checkpoint, and of which step, is decided path by path (`placing`). What looks like one and is not
understood is listed with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from crashproof.checkpoints.digest import is_litter
from crashproof.checkpoints.foreign.placing import (
    GIVEN,
    Candidate,
    NotUnderstood,
    is_inside_a_checkpoint,
    place_file,
    place_folder,
)

__all__ = ["KNOWN_NAMES", "Survey", "survey"]

KNOWN_NAMES = (
    "checkpoint_<step>.pt (.pth, .ckpt, .bin, .safetensors, .npz, .pkl, .json), ckpt_<step>.pt, step_<step>.pt, "
    "epoch=<n>-step=<step>.ckpt, checkpoint-<step>/, checkpoint_<step>/, or a state with its step inside"
)

_PLACES = frozenset(
    {
        *("checkpoints", "checkpoint", "ckpts", "ckpt", "weights", "models", "snapshots", "saved_models"),
        *("saves", "training_states", "lightning_logs", "csv_logs"),
    }
)
"""Folders in which the checkpoints of the run around them lie."""
_VERSION = re.compile(r"version_(\d{1,9})")
_NOT_ENTERED = frozenset({"wandb", "mlruns", "node_modules", "venv", "site-packages", "progress"})
_MAX_DEPTH = 5
_MOST_NAMED = 20
_MOST_ENTRIES = 10_000
"""Of a folder in the run's; one with more holds data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a folder holds."""

    candidates: list[Candidate]
    """Sorted by step; nobody has checked yet whether they are intact."""
    not_understood: list[NotUnderstood]
    """What looks like a checkpoint and is passed over, sorted by path."""


def survey(
    folder: Path,
    *,
    accepts: Callable[[Path], bool] | None = None,
    steps: Mapping[Path, int] | None = None,
    most_depth: int = _MAX_DEPTH,
) -> Survey:
    """Find the checkpoints of one run in its folder and the folders in it.

    Args:
        folder: The run's folder.
        accepts: Whether a path may be one at all; anything may if not given.
        steps: Steps that a person has given, by absolute path; these need no other sign.
        most_depth: How many folders deep to look.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: `folder` itself cannot be listed.
    """
    given = steps or {}
    found = [
        each for each in _walk(folder, accepts or _anything, depth=0, most_depth=most_depth) if each.path not in given
    ]
    candidates = [each for each in found if isinstance(each, Candidate)]
    passed_over = [each for each in found if isinstance(each, NotUnderstood)]
    for choose in (_without_links, _of_one_run, _of_newest_version):
        candidates, left_out = choose(folder, candidates)
        passed_over += left_out
    candidates += [Candidate(step=step, path=path, source=GIVEN) for path, step in given.items()]
    return Survey(
        candidates=sorted(candidates, key=lambda each: (each.step, each.path.name)),
        not_understood=_summarized(sorted(passed_over, key=lambda each: str(each.path))),
    )


def _summarized(passed_over: list[NotUnderstood]) -> list[NotUnderstood]:
    """Name a few of very many files in one folder, and count the rest."""
    by_folder: dict[Path, list[NotUnderstood]] = {}
    for each in passed_over:
        by_folder.setdefault(each.path.parent, []).append(each)
    shown = []
    for folder, inside in by_folder.items():
        shown += inside[:_MOST_NAMED]
        if len(inside) > _MOST_NAMED:
            count = len(inside) - _MOST_NAMED
            shown.append(NotUnderstood(path=folder / "*", reason=f"{count:,} more in this folder are not understood"))
    return shown


def _anything(path: Path) -> bool:
    return True


def _walk(
    folder: Path, accepts: Callable[[Path], bool], *, depth: int, most_depth: int
) -> Iterator[Candidate | NotUnderstood]:
    entries = sorted(folder.iterdir())
    if depth and len(entries) > _MOST_ENTRIES:
        yield NotUnderstood(
            path=folder, reason=f"it holds more than {_MOST_ENTRIES:,} files, and was not gone through"
        )
        return
    for path in entries:
        if is_litter(path.name) or path.name.startswith("."):
            continue
        placed = _place(path) if accepts(path) else None
        if placed is not None:
            yield placed
        elif depth < most_depth and path.is_dir() and _is_entered(path):
            yield from _walk_below(path, accepts, depth=depth + 1, most_depth=most_depth)


def _place(path: Path) -> Candidate | NotUnderstood | None:
    try:
        return place_folder(path) if path.is_dir() else place_file(path)
    except OSError as error:
        return NotUnderstood(path=path, reason=f"it cannot be read ({error.strerror})")


def _walk_below(
    folder: Path, accepts: Callable[[Path], bool], *, depth: int, most_depth: int
) -> Iterator[Candidate | NotUnderstood]:
    try:
        found = list(_walk(folder, accepts, depth=depth, most_depth=most_depth))
    except OSError as error:
        yield NotUnderstood(path=folder, reason=f"the folder cannot be read ({error.strerror})")
        return
    if found and (folder / "progress" / "events.jsonl").exists():
        yield NotUnderstood(path=folder, reason="it is a run of its own")
        return
    yield from found


def _is_entered(path: Path) -> bool:
    return path.name not in _NOT_ENTERED and not path.is_symlink() and not is_inside_a_checkpoint(path)


def _without_links(root: Path, candidates: list[Candidate]) -> tuple[list[Candidate], list[NotUnderstood]]:
    """Take a link and what it leads to as one checkpoint."""
    own = {each.path.resolve(): each.path for each in candidates if not each.path.is_symlink()}
    links = {
        each.path: own[each.path.resolve()]
        for each in candidates
        if each.path.is_symlink() and each.path.resolve() in own
    }
    left_out = [
        NotUnderstood(path=path, reason=f"it is a link to {target.relative_to(root)}")
        for path, target in links.items()
    ]
    return [each for each in candidates if each.path not in links], left_out


def _of_one_run(root: Path, candidates: list[Candidate]) -> tuple[list[Candidate], list[NotUnderstood]]:
    """Leave out other runs that lie in the folder: one folder is one run."""
    homes: dict[PurePath, list[Candidate]] = {}
    for each in candidates:
        homes.setdefault(_home(each.path.parent.relative_to(root)), []).append(each)
    own = PurePath()
    if own not in homes and len(homes) == 1:
        return candidates, []
    left_out = [
        NotUnderstood(
            path=root / home,
            reason=f"it looks like a run of its own, with {len(each)} checkpoint(s): adopt that folder by itself",
        )
        for home, each in homes.items()
        if home != own
    ]
    return homes.get(own, []), left_out


def _home(parent: PurePath) -> PurePath:
    """The folder of the run whose checkpoints lie in a folder."""
    parts = list(parent.parts)
    while parts and (parts[-1] in _PLACES or _VERSION.fullmatch(parts[-1])):
        parts.pop()
    return PurePath(*parts)


def _of_newest_version(root: Path, candidates: list[Candidate]) -> tuple[list[Candidate], list[NotUnderstood]]:
    """Of the `version_<n>` folders that Lightning makes, one for each start, keep the newest with a checkpoint."""
    versions: dict[int, list[Candidate]] = {}
    for each in candidates:
        versions.setdefault(_version(each.path.relative_to(root)), []).append(each)
    newest = max(versions, default=-1)
    left_out = [
        NotUnderstood(path=each.path, reason=f"it is of version_{version}, and version_{newest} is newer")
        for version, of_version in versions.items()
        if version not in (-1, newest)
        for each in of_version
    ]
    return [*versions.get(-1, []), *(versions[newest] if newest >= 0 else [])], left_out


def _version(path: PurePath) -> int:
    numbers = [int(found[1]) for part in path.parent.parts if (found := _VERSION.fullmatch(part))]
    return numbers[-1] if numbers else -1
