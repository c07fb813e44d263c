"""Verify checkpoints."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from crashproof.checkpoints.digest import digest_of, digest_of_names, kind_of, size_of, stats_of
from crashproof.checkpoints.previous import previous_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import FileUnreadable
from crashproof.records.checkpoints import CheckpointMetadata, FileDigest, FileStat

__all__ = ["examine", "intact_previous", "is_damaged", "problem_with"]


def problem_with(checkpoint: CheckpointMetadata, folder: RunFolder, *, trusts_unverified: bool = False) -> str | None:
    """Why a checkpoint cannot be used, or None if it is intact; see `examine`."""
    return examine(checkpoint, folder, trusts_unverified=trusts_unverified)[1]


def examine(
    checkpoint: CheckpointMetadata, folder: RunFolder, *, trusts_unverified: bool = False
) -> tuple[Path, str | None]:
    """Where a checkpoint can be loaded from, and why it cannot be used, or None if it is intact.

    Reads every byte of what was recorded. If its file was overwritten by a save that was never recorded, the bytes
    that were kept of it count. With `trusts_unverified`, one that cannot be verified passes.
    """
    path = folder.find(checkpoint.checkpoint_path)
    problem = _problem_at(path, checkpoint, trusts_unverified=trusts_unverified)
    kept = None if problem is None else intact_previous(checkpoint, folder)
    return (path, problem) if kept is None else (kept, None)


def intact_previous(checkpoint: CheckpointMetadata, folder: RunFolder) -> Path | None:
    """The bytes that were kept of a record while its file is overwritten, if they are there and intact."""
    kept = previous_of(checkpoint, folder)
    if checkpoint.sha256 is None or not kept.is_file():
        return None
    return kept if digest_of(kept).sha256 == checkpoint.sha256 else None


def is_damaged(checkpoint: CheckpointMetadata, folder: RunFolder) -> bool:
    """Whether a checkpoint exists and is not what was recorded, so that it belongs in quarantine."""
    if checkpoint.num_bytes is None or not folder.find(checkpoint.checkpoint_path).exists():
        return False
    # One without a digest may be skipped for a verifiable one; that is no damage.
    return problem_with(checkpoint, folder, trusts_unverified=True) is not None


def _problem_at(path: Path, checkpoint: CheckpointMetadata, *, trusts_unverified: bool) -> str | None:
    try:
        if checkpoint.num_bytes is None:
            return None if trusts_unverified else "it did not exist when it was recorded, and cannot be verified"
        if not path.exists():
            return "it is missing"
        if (kind := kind_of(path)) is not None and not path.is_dir():
            return f"it is {kind}, not a regular file"
        if checkpoint.files is not None:
            return _problem_with_files(checkpoint.files, path)
        if checkpoint.stats and path.is_dir():
            # Files that were added later are none of it.
            return _problem_without_digest(checkpoint, path, trusts_unverified)
        if (size := size_of(path)) != checkpoint.num_bytes:
            return f"it has {size:,} bytes instead of {checkpoint.num_bytes:,}"
        if checkpoint.sha256 is not None:
            is_equal = digest_of(path).sha256 == checkpoint.sha256
            return None if is_equal else "its bytes differ from those that were saved"
        return _problem_without_digest(checkpoint, path, trusts_unverified)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except FileUnreadable as error:
        name = "it" if error.path == path else f"{error.path.relative_to(path)} in it"
        return f"{name} cannot be read ({error.reason})"


def _problem_without_digest(checkpoint: CheckpointMetadata, path: Path, trusts_unverified: bool) -> str | None:
    """Check one whose digest a crash has cut off: nobody may have written to it since, and its archives are read.

    `torch.save` writes checksums of its own, so a copied run can still be verified by those.
    """
    if checkpoint.stats and (problem := _problem_with_stats(checkpoint.stats, path)) is not None:
        return problem
    if checkpoint.stats and _are_unchanged(checkpoint.stats, path):
        archives = (path / name for name in checkpoint.stats if zipfile.is_zipfile(path / name))
        problems = map(_problem_with_archive, archives)
        return next((each for each in problems if each is not None), None)
    if path.is_file() and zipfile.is_zipfile(path):
        return _problem_with_archive(path)
    return None if trusts_unverified else "its digest was not computed before the run died, so it cannot be verified"


def _problem_with_stats(recorded: Mapping[str, FileStat], path: Path) -> str | None:
    """A copy has other times and inodes, and the same sizes; the same inode with another time was written to."""
    found = stats_of(path)
    for name, stat in recorded.items():
        if name not in found:
            return f"{name} is missing in it"
        if found[name].num_bytes != stat.num_bytes:
            return f"{name} in it has {found[name].num_bytes:,} bytes instead of {stat.num_bytes:,}"
        if found[name].inode == stat.inode and found[name] != stat:
            named = "it" if name == "." else f"{name} in it"
            return f"{named} was written to after it was recorded, before its digest was computed"
    return None


def _are_unchanged(recorded: Mapping[str, FileStat], path: Path) -> bool:
    found = stats_of(path)
    return all(found.get(name) == stat for name, stat in recorded.items())


def _problem_with_archive(path: Path) -> str | None:
    """Read a zip archive by its own checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        return f"its archive is damaged ({error})"
    return None if broken is None else f"{broken} in it is damaged"


def _problem_with_files(recorded: Mapping[str, FileDigest], path: Path) -> str | None:
    """Compare what was recorded of a folder; files that were added later are none of it."""
    missing = next((name for name in recorded if not (path / name).is_file()), None)
    if missing is not None:
        kind = kind_of(path / missing)
        return f"{missing} is missing in it" if kind is None else f"{missing} in it is {kind}, not a regular file"
    found = digest_of_names(path, recorded)
    differing = next((name for name in recorded if found[name] != recorded[name]), None)
    return None if differing is None else f"the bytes of {differing} differ from those that were saved"
