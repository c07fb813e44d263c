"""Make sure that all processes resume from the same checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path

from crashproof.checkpoints.digest import digest_of_files, digest_of_names, files_in
from crashproof.digests import BLAKE3
from crashproof.errors import CheckpointDamaged
from crashproof.pytorch.coordination.agreement import all_or_none, require_same
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.tensor_digest import sha256_of, short_digest

__all__ = ["require_same_checkpoint"]

_HINT = "Let all hosts share the file system of the run; nothing was trained."


def require_same_checkpoint(path: Path, ranks: Ranks) -> None:
    """Compare what tells one checkpoint from another; every process calls it.

    Raises:
        CheckpointDamaged, FileUnreadable: This process cannot read it.
        RankFailed: Another one cannot.
        RanksDisagree: The processes find different ones under this path.
    """
    if ranks.num_ranks == 1:
        return
    with all_or_none(ranks, f"looking at {path.name}"):
        digest = _digest_of_folder(path) if path.is_dir() else _digest_of_archive(path)
    require_same(ranks, {path.name: short_digest(digest)}, what="checkpoint", hint=_HINT)


def _digest_of_folder(path: Path) -> str:
    """The digest of what names and places the tensors, and of the names of all files; the shards are not read."""
    names = sorted(files_in(path))
    small = [name for name in names if not name.endswith(".distcp")]
    return sha256_of(digest_of_files(digest_of_names(path, dict.fromkeys(small, BLAKE3))).digest, *names)


def _digest_of_archive(path: Path) -> str:
    """The digest of the checksums in an archive, which `restore` compares with the content."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [(each.filename, each.CRC, each.file_size) for each in archive.infolist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointDamaged(path, reason=f"it is missing or torn ({error})") from error
    return sha256_of(repr(entries))
