"""Which checkpoints are whole, and where to resume."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crashproof.disk.atomic import partial_name, sync_tree
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NoUsableCheckpoint
from crashproof.records import CheckpointMetadata, FileDigest, RefusedCheckpoint, RemovedCheckpoint, TrainingSession

__all__ = [
    "Choice",
    "Digest",
    "choose",
    "choose_for",
    "delete_removed",
    "digest_of",
    "digest_of_files",
    "is_remote",
    "is_removable",
    "left_of_removal",
    "make_durable",
    "move_aside",
    "newest_whole",
    "problem_with",
]

log = logging.getLogger("crashproof")

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What tells a whole checkpoint from a damaged one."""

    num_bytes: int
    sha256: str
    files: dict[str, FileDigest] | None
    """Of each file in a folder; None for a single file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The checkpoint to resume from, and the newer ones that had to be passed over."""

    checkpoint: CheckpointMetadata
    refused: list[tuple[CheckpointMetadata, str]]
    """Each with the reason, the newest first."""


def digest_of(path: Path) -> Digest:
    """Read a file, or every file of a folder, and digest it with SHA-256."""
    if path.is_file():
        single = _digest_of_file(path)
        return Digest(num_bytes=single.num_bytes, sha256=single.sha256, files=None)
    names = [str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()]
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(lambda name: _digest_of_file(path / name), names))
    return digest_of_files(dict(zip(names, digests, strict=True)))


def digest_of_files(files: Mapping[str, FileDigest]) -> Digest:
    """The digest of a folder, made of those of all its files by their relative names; nothing is read."""
    by_name = {name: files[name] for name in sorted(files)}
    listing = "".join(f"{digest.sha256}  {digest.num_bytes}  {name}\n" for name, digest in by_name.items())
    return Digest(
        num_bytes=sum(digest.num_bytes for digest in by_name.values()),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
        files=by_name,
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def make_durable(path: Path, *, disk: Disk = REAL_DISK) -> None:
    """Make a checkpoint that somebody else's code wrote survive a power loss, its name included."""
    with storage_errors(path):
        sync_tree(path, disk)
        disk.sync_folder(path.parent)


def choose(
    checkpoints: Iterable[CheckpointMetadata],
    folder: RunFolder,
    *,
    set_aside: Iterable[RefusedCheckpoint] = (),
    superseded: Container[int] = (),
) -> Choice | None:
    """The newest whole checkpoint, or None where none was ever recorded.

    Those of a timeline that a later attempt left (`superseded`, by step) come after all others.

    Every byte of a candidate is read. Checkpoints that nothing can be held against (a remote path, a save in
    flight when it was recorded) are offered only where nothing verifiable was ever recorded.

    Raises:
        NoUsableCheckpoint: some were recorded and none can be used; names each and why.
    """
    newest_first = sorted(
        checkpoints,
        key=lambda each: (each.checkpoint_step not in superseded, each.checkpoint_step, each.created_at),
        reverse=True,
    )
    gone = list(set_aside)
    if not newest_first and not gone:
        return None
    has_verifiable = bool(gone) or any(each.is_verifiable for each in newest_first)
    refused: list[tuple[CheckpointMetadata, str]] = []
    for candidate in newest_first:
        problem = problem_with(candidate, folder, trusts_unverified=not has_verifiable)
        if problem is None:
            return Choice(checkpoint=candidate, refused=refused)
        refused.append((candidate, problem))
    reasons = [(each.checkpoint_path, reason) for each, reason in refused]
    reasons += [(each.checkpoint_path, f"{each.reason}; set aside earlier") for each in gone]
    raise NoUsableCheckpoint(folder.root, refused=reasons)


def choose_for(session: TrainingSession, folder: RunFolder) -> Choice | None:
    """Where this session would resume; see `choose`."""
    return choose(
        [*session.checkpoints.values(), *session.checkpoints_beside],
        folder,
        set_aside=session.checkpoints_set_aside,
        superseded=session.checkpoints_superseded,
    )


def problem_with(checkpoint: CheckpointMetadata, folder: RunFolder, *, trusts_unverified: bool = False) -> str | None:
    """Why a checkpoint cannot be used, or None where it is whole.

    With `trusts_unverified`, one whose bytes cannot be held against anything passes.
    """
    path = folder.find(checkpoint.checkpoint_path)
    try:
        if checkpoint.num_bytes is None:
            return None if trusts_unverified else "it was not there when it was recorded, and cannot be verified"
        if not path.exists():
            return "it is missing"
        if (size := size_of(path)) != checkpoint.num_bytes:
            return f"it has {size:,} bytes instead of {checkpoint.num_bytes:,}"
        if checkpoint.sha256 is not None:
            return _difference(checkpoint, digest_of(path))
        return _problem_without_digest(path, trusts_unverified)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _problem_without_digest(path: Path, trusts_unverified: bool) -> str | None:
    """For a large file whose digest a crash has cut off: `torch.save` writes checksums of its own."""
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            return f"its archive is damaged ({error})"
        return None if broken is None else f"{broken} in it is damaged"
    return None if trusts_unverified else "it was not digested before the run died, and cannot be verified"


def is_damaged(checkpoint: CheckpointMetadata, folder: RunFolder) -> bool:
    """Whether there is something to set aside: it is there, and not what was recorded."""
    if checkpoint.num_bytes is None or not folder.find(checkpoint.checkpoint_path).exists():
        return False
    # One whose digest a crash has cut off is passed over where another can be verified; that is no damage.
    return problem_with(checkpoint, folder, trusts_unverified=True) is not None


def move_aside(checkpoint: CheckpointMetadata, folder: RunFolder, *, disk: Disk = REAL_DISK) -> Path | None:
    """Move a damaged checkpoint out of the way; None where it lies outside the run and is not ours to move."""
    path = folder.find(checkpoint.checkpoint_path)
    if not folder.is_inside(path):
        return None
    target = folder.set_aside_name(path)
    with storage_errors(target):
        disk.make_folders(folder.set_aside)
        disk.replace(path, target)
        disk.sync_folder(folder.set_aside)
        disk.sync_folder(path.parent)
    return target


def newest_whole(session: TrainingSession, folder: RunFolder) -> CheckpointMetadata | None:
    """The newest checkpoint that was read back and is what was recorded; None where nothing may lean on one.

    One that nothing can be held against (yet) is passed over; where the newest that can is damaged, there is none.
    """
    known = [*session.checkpoints.values(), *session.checkpoints_beside]
    verifiable = [
        each for each in known if each.is_verifiable and each.checkpoint_step not in session.checkpoints_superseded
    ]
    newest = max(verifiable, key=lambda each: (each.checkpoint_step, each.created_at), default=None)
    if newest is None:
        return None
    problem = problem_with(newest, folder)
    if problem is not None:
        log.warning("No checkpoint is removed, as %s cannot be used: %s.", newest.checkpoint_path, problem)
        return None
    return newest


def is_removable(checkpoint_path: str, session: TrainingSession, folder: RunFolder) -> bool:
    """Whether a path is the run's to delete: inside its folder, no link, and nothing that stays lies in it."""
    path = folder.root / checkpoint_path
    if is_remote(checkpoint_path) or path.is_symlink() or folder.progress.is_relative_to(path):
        return False
    # A folder above it may be a link that leads out of the run.
    if not folder.is_inside(path) or not path.resolve().is_relative_to(folder.root.resolve()):
        return False
    others = [
        folder.root / each.checkpoint_path
        for each in [*session.checkpoints.values(), *session.checkpoints_beside]
        if each.checkpoint_path != checkpoint_path
    ]
    return not any(other.is_relative_to(path) or path.is_relative_to(other) for other in others)


def delete_removed(session: TrainingSession, folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
    """Delete what the newest removal named and is still there, unless a checkpoint has that name by now."""
    for removed in left_of_removal(session, folder):
        path = folder.root / removed.checkpoint_path
        try:
            _delete(path, disk)
        except OSError as error:
            # A stale checkpoint costs space, not correctness.
            log.warning("Could not delete %s, which is not kept any more: %s.", path, error.strerror)


def left_of_removal(session: TrainingSession, folder: RunFolder) -> list[RemovedCheckpoint]:
    """What the newest removal named and is still there."""
    named = {each.checkpoint_path for each in [*session.checkpoints.values(), *session.checkpoints_beside]}
    return [
        each
        for each in session.checkpoints_removing
        if each.checkpoint_path not in named
        and is_removable(each.checkpoint_path, session, folder)
        and any(path.exists() for path in _names_of_removed(folder.root / each.checkpoint_path))
    ]


def is_remote(checkpoint_path: str) -> bool:
    """Whether it is an address and no path."""
    return "://" in checkpoint_path


def _delete(path: Path, disk: Disk) -> None:
    """Rename first, remove then: a kill in between leaves what the next start takes for a partial file."""
    partial = _names_of_removed(path)[1]
    for leftover in (partial, path):
        if not leftover.exists():
            continue
        if leftover == path:
            disk.replace(path, partial)
        if partial.is_dir():
            disk.remove_tree(partial)
        else:
            disk.remove_file(partial)


def _names_of_removed(path: Path) -> tuple[Path, Path]:
    """A checkpoint's own name, and its name on the way out: not the one that a save of it would use."""
    return path, partial_name(path.with_name(f"{path.name}.removed"))


def _difference(checkpoint: CheckpointMetadata, found: Digest) -> str | None:
    if found.sha256 == checkpoint.sha256:
        return None
    if checkpoint.files is None or found.files is None:
        return "its bytes differ from those that were saved"
    for name in sorted(checkpoint.files.keys() | found.files.keys()):
        if name not in found.files:
            return f"{name} is missing in it"
        if name not in checkpoint.files:
            return f"{name} was added to it"
        if checkpoint.files[name] != found.files[name]:
            return f"the bytes of {name} differ from those that were saved"
    return "its list of files differs"


def _digest_of_file(path: Path) -> FileDigest:
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            num_bytes += len(block)
    return FileDigest(num_bytes=num_bytes, sha256=digest.hexdigest())
