"""Verify checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from crashproof.checkpoints.digest import digest_of, digest_of_names, is_litter, kind_of, size_of, stats_of
from crashproof.checkpoints.on_record import is_as_verified, recorded_names
from crashproof.checkpoints.previous import previous_of
from crashproof.digests import algorithm_of, is_known
from crashproof.disk.regular_file import open_descriptor
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import FileUnreadable
from crashproof.records.checkpoints import CheckpointMetadata, FileDigest, FileStat

__all__ = [
    "MISSING",
    "Examination",
    "Verification",
    "examine",
    "examine_previous",
    "is_damaged",
    "problem_at_a_glance",
    "problem_with",
]

MISSING = "it is missing"


class Verification(StrEnum):
    """How it is known that a checkpoint is intact."""

    NOW = "now"
    """Every byte was read, and is as it was saved."""
    ON_RECORD = "on_record"
    """It was verified before, and its files have the size, time and inode that they had then. Nothing was read."""
    NONE = "none"
    """It is not known: it cannot be used, or has no digest to compare with."""


class Examination(Struct, frozen=True, kw_only=True):
    """What is known of a checkpoint's bytes."""

    path: Path
    """Where it can be loaded from."""
    problem: str | None
    """Why it cannot be used; None if it can."""
    verification: Verification = Verification.NONE
    stats: dict[str, FileStat] | None = None
    """What the file system said of its files before and after they were read and found intact."""


def problem_with(checkpoint: CheckpointMetadata, folder: RunFolder, *, trusts_unverified: bool = False) -> str | None:
    """Why a checkpoint cannot be used, or None if it is intact; see `examine`."""
    return examine(checkpoint, folder, trusts_unverified=trusts_unverified).problem


def examine(
    checkpoint: CheckpointMetadata, folder: RunFolder, *, trusts_unverified: bool = False, trusts_record: bool = False
) -> Examination:
    """Find out where a checkpoint can be loaded from, and whether it can be used.

    If its file was overwritten by a save that was never recorded, the bytes that were kept of it count.

    Args:
        checkpoint: Its record.
        folder: The run.
        trusts_unverified: Let one pass that cannot be verified.
        trusts_record: Read nothing where its files are unchanged since they were verified last; else every byte of
            what was recorded is read.
    """
    path = folder.find(checkpoint.checkpoint_path)
    found = _examine_at(path, checkpoint, trusts_unverified=trusts_unverified, trusts_record=trusts_record)
    kept = None if found.problem is None else examine_previous(checkpoint, folder, trusts_record=trusts_record)
    return kept or found


def examine_previous(
    checkpoint: CheckpointMetadata, folder: RunFolder, *, trusts_record: bool = False
) -> Examination | None:
    """The same of the bytes that were kept of a record while its file is overwritten; None if none are intact."""
    kept = previous_of(checkpoint, folder)
    if checkpoint.digest is None or _unknown_algorithm(checkpoint) is not None or not kept.is_file():
        return None
    found = _examine_at(kept, checkpoint, trusts_unverified=False, trusts_record=trusts_record)
    return found if found.problem is None else None


def is_damaged(checkpoint: CheckpointMetadata, folder: RunFolder) -> bool:
    """Whether a checkpoint exists and is not what was recorded, so that it belongs in quarantine.

    One whose digest a newer version has computed is not: whether it is damaged, only that version can tell.
    """
    if checkpoint.num_bytes is None or not _exists(folder.find(checkpoint.checkpoint_path)):
        return False
    if _unknown_algorithm(checkpoint) is not None:
        return False
    # One without a digest may be skipped for a verifiable one; that is no damage. Neither is a missing permission.
    found = examine(checkpoint, folder, trusts_unverified=True)
    return found.problem is not None and not _is_forbidden(found.path, checkpoint)


def problem_at_a_glance(checkpoint: CheckpointMetadata, folder: RunFolder) -> str | None:
    """What names and sizes alone say is wrong with a checkpoint that lies in reach; reads no content."""
    path = folder.find(checkpoint.checkpoint_path)
    try:
        if not path.exists():
            return MISSING
        recorded = _sizes(checkpoint)
        if recorded and path.is_dir():
            return _problem_with_sizes(recorded, path)
        size = size_of(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None if size == checkpoint.num_bytes else f"it has {size:,} bytes instead of {checkpoint.num_bytes or 0:,}"


def _examine_at(
    path: Path, checkpoint: CheckpointMetadata, *, trusts_unverified: bool, trusts_record: bool
) -> Examination:
    if trusts_record and _unknown_algorithm(checkpoint) is None and is_as_verified(checkpoint, path):
        return Examination(path=path, problem=None, verification=Verification.ON_RECORD)
    before = _stats_at(path, checkpoint)
    problem = _problem_at(path, checkpoint, trusts_unverified=trusts_unverified)
    if problem is not None or not checkpoint.is_verifiable:
        return Examination(path=path, problem=problem)
    is_same = before == _stats_at(path, checkpoint)
    return Examination(
        path=path, problem=None, verification=Verification.NOW, stats=before if before and is_same else None
    )


def _stats_at(path: Path, checkpoint: CheckpointMetadata) -> dict[str, FileStat] | None:
    try:
        return stats_of(path, recorded_names(checkpoint.files))
    except OSError:
        return None


def _sizes(checkpoint: CheckpointMetadata) -> dict[str, int]:
    recorded: Mapping[str, FileDigest | FileStat] = checkpoint.files or checkpoint.stats or {}
    return {name: each.num_bytes for name, each in recorded.items() if not is_litter(name)}


def _exists(path: Path) -> bool:
    """Whether something is there, as far as this process is allowed to see."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _is_forbidden(path: Path, checkpoint: CheckpointMetadata) -> bool:
    """Whether a checkpoint may not be read, so that nobody knows whether it is damaged."""
    try:
        for each in [path / name for name in _sizes(checkpoint)] if path.is_dir() else [path]:
            os.close(open_descriptor(each))
    except FileUnreadable as error:
        return isinstance(error.__cause__, PermissionError)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _problem_at(path: Path, checkpoint: CheckpointMetadata, *, trusts_unverified: bool) -> str | None:
    try:
        if checkpoint.num_bytes is None:
            return None if trusts_unverified else "it did not exist when it was recorded, and cannot be verified"
        if not path.exists():
            return MISSING
        if (kind := kind_of(path)) is not None and not path.is_dir():
            return f"it is {kind}, not a regular file"
        if (algorithm := _unknown_algorithm(checkpoint)) is not None:
            return f"its digest is by {algorithm!r}, which this crashproof cannot compute; upgrade crashproof"
        if checkpoint.files is not None:
            return _problem_with_files(checkpoint.files, path)
        if checkpoint.stats and path.is_dir():
            # Files that were added later are none of it.
            return _problem_without_digest(checkpoint, path, trusts_unverified)
        if (size := size_of(path)) != checkpoint.num_bytes:
            return f"it has {size:,} bytes instead of {checkpoint.num_bytes:,}"
        if checkpoint.digest is not None:
            return None if _has_digest(path, checkpoint.digest) else "its bytes differ from those that were saved"
        return _problem_without_digest(checkpoint, path, trusts_unverified)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except FileUnreadable as error:
        name = "it" if error.path == path else f"{error.path.relative_to(path)} in it"
        return f"{name} cannot be read ({error.reason})"


def _unknown_algorithm(checkpoint: CheckpointMetadata) -> str | None:
    """The algorithm of a checkpoint's digests that this version does not know; None if it knows all."""
    digests = [checkpoint.digest, *(each.digest for each in (checkpoint.files or {}).values())]
    algorithms = (algorithm_of(each) for each in digests if each is not None)
    return next((each for each in algorithms if not is_known(each)), None)


def _has_digest(path: Path, digest: str) -> bool:
    return digest_of(path, algorithm=algorithm_of(digest)).digest == digest


def _problem_without_digest(checkpoint: CheckpointMetadata, path: Path, trusts_unverified: bool) -> str | None:
    """Check one whose digest a crash has cut off: nobody may have written to it since, and its formats are checked.

    A copy of the run has other inodes, and the same times if it was made with `cp -a` or `rsync -a`. With other times
    too, a file may be that of another save: its own checksums do not tell which.
    """
    stats = {name: each for name, each in (checkpoint.stats or {}).items() if not is_litter(name)}
    sizes = _sizes(checkpoint) or {".": checkpoint.num_bytes or 0}
    problem = _problem_with_sizes(sizes, path) or _problem_with_times(stats, path)
    if problem is not None:
        return problem
    problem, unchecked = _check_formats(sizes, path)
    if problem is not None:
        return problem
    if _are_unchanged(stats, path) if stats else path.is_file() and not unchecked:
        return None
    return None if trusts_unverified else "its digest was not computed before the run died, so it cannot be verified"


def _problem_with_sizes(recorded: Mapping[str, int], path: Path) -> str | None:
    found = stats_of(path, recorded)
    for name, num_bytes in recorded.items():
        if name not in found:
            return f"{name} is missing in it" if path.is_dir() and name != "." else "a folder has taken its place"
        if found[name].num_bytes != num_bytes:
            return f"{name} in it has {found[name].num_bytes:,} bytes instead of {num_bytes:,}"
    return None


def _problem_with_times(recorded: Mapping[str, FileStat], path: Path) -> str | None:
    """A copy has other times and inodes; the same inode with another time was written to."""
    for name, found in stats_of(path, recorded).items() if recorded else ():
        if found.inode == recorded[name].inode and found != recorded[name]:
            whose = "it" if name == "." else f"{name} in it"
            return f"{whose} was written to after it was recorded, before its digest was computed"
    return None


def _check_formats(recorded: Mapping[str, int], path: Path) -> tuple[str | None, list[str]]:
    """What is wrong with a file of a known format, and the names of those that have no checksums of their own."""
    # Readers of zip files and pickles, for the rare checkpoint that has no digest.
    from crashproof.checkpoints.foreign.formats import SUFFIXES, Torn, check_file, named

    unchecked: list[str] = []
    try:
        for name, num_bytes in recorded.items():
            file = path / name if path.is_dir() else path
            os.close(open_descriptor(file))
            if num_bytes and file.suffix in SUFFIXES:
                with named(name) if path.is_dir() else nullcontext():
                    unchecked += check_file(file)
            else:
                unchecked.append(name)
    except Torn as torn:
        return str(torn), []
    return None, unchecked


def _are_unchanged(recorded: Mapping[str, FileStat], path: Path) -> bool:
    found = stats_of(path, recorded)
    return all(name in found and found[name].mtime_ns == stat.mtime_ns for name, stat in recorded.items())


def _problem_with_files(recorded: Mapping[str, FileDigest], path: Path) -> str | None:
    """Compare what was recorded of a folder; files that were added later are none of it, nor is litter."""
    recorded = {name: digest for name, digest in recorded.items() if not is_litter(name)}
    missing = next((name for name in recorded if not (path / name).is_file()), None)
    if missing is not None:
        kind = kind_of(path / missing)
        return f"{missing} is missing in it" if kind is None else f"{missing} in it is {kind}, not a regular file"
    found = digest_of_names(path, {name: algorithm_of(each.digest) for name, each in recorded.items()})
    differing = next((name for name in recorded if found[name] != recorded[name]), None)
    return None if differing is None else f"the bytes of {differing} differ from those that were saved"
