"""Verify checkpoints."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from crashproof.checkpoints.digest import Digest, digest_of, kind_of, size_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import FileUnreadable
from crashproof.records.checkpoints import CheckpointMetadata

__all__ = ["is_damaged", "problem_with"]


def problem_with(checkpoint: CheckpointMetadata, folder: RunFolder, *, trusts_unverified: bool = False) -> str | None:
    """Why a checkpoint cannot be used, or None if it is intact.

    With `trusts_unverified`, one that cannot be verified passes.
    """
    path = folder.find(checkpoint.checkpoint_path)
    try:
        if checkpoint.num_bytes is None:
            return None if trusts_unverified else "it did not exist when it was recorded, and cannot be verified"
        if not path.exists():
            return "it is missing"
        if (kind := kind_of(path)) is not None and not path.is_dir():
            return f"it is {kind}, not a regular file"
        if (size := size_of(path)) != checkpoint.num_bytes:
            return f"it has {size:,} bytes instead of {checkpoint.num_bytes:,}"
        if checkpoint.sha256 is not None:
            return _difference(checkpoint, digest_of(path), path)
        return _problem_without_digest(path, trusts_unverified)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except FileUnreadable as error:
        name = "it" if error.path == path else f"{error.path.relative_to(path)} in it"
        return f"{name} cannot be read ({error.reason})"


def is_damaged(checkpoint: CheckpointMetadata, folder: RunFolder) -> bool:
    """Whether a checkpoint exists and is not what was recorded, so that it belongs in quarantine."""
    if checkpoint.num_bytes is None or not folder.find(checkpoint.checkpoint_path).exists():
        return False
    # One without a digest may be skipped for a verifiable one; that is no damage.
    return problem_with(checkpoint, folder, trusts_unverified=True) is not None


def _problem_without_digest(path: Path, trusts_unverified: bool) -> str | None:
    """Check a large file that was not digested before a crash: `torch.save` writes checksums of its own."""
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            return f"its archive is damaged ({error})"
        return None if broken is None else f"{broken} in it is damaged"
    return None if trusts_unverified else "its digest was not computed before the run died, so it cannot be verified"


def _difference(checkpoint: CheckpointMetadata, found: Digest, path: Path) -> str | None:
    if found.sha256 == checkpoint.sha256:
        return None
    if checkpoint.files is None or found.files is None:
        return "its bytes differ from those that were saved"
    for name in sorted(checkpoint.files.keys() | found.files.keys()):
        if name not in found.files:
            kind = kind_of(path / name)
            return f"{name} is missing in it" if kind is None else f"{name} in it is {kind}, not a regular file"
        if name not in checkpoint.files:
            return f"{name} was added to it"
        if checkpoint.files[name] != found.files[name]:
            return f"the bytes of {name} differ from those that were saved"
    return "its list of files differs"
