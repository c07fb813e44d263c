"""Files added to a recorded checkpoint.

People and programs put files into a checkpoint's folder: an evaluation's results, a README, a conversion. They are no
part of what was recorded, so they neither damage it nor are deleted with it. Some have a name that a framework loads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from crashproof.checkpoints.digest import is_litter
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder, is_remote
from crashproof.errors import StorageError
from crashproof.formatting import listing
from crashproof.records.checkpoints import CheckpointMetadata, FileDigest, FileStat

__all__ = ["added_files", "log_added_files", "rescue_added_files"]

log = logging.getLogger("crashproof")

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LOADED_INSTEAD_OF = {
    "model.safetensors": ("pytorch_model.bin", *_INDEXES, *_ADAPTERS),
    "pytorch_model.bin": (*_INDEXES, *_ADAPTERS),
    "model.safetensors.index.json": ("pytorch_model.bin.index.json",),
    "adapter_model.safetensors": ("adapter_model.bin",),
}
"""By the name of an added file of weights: those that transformers, PEFT or accelerate pass over where it exists."""
_LOADED_BESIDE = (
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state*.pth"),
    *("random_states_*.pkl", "trainer_state.json", "adapter_config.json", "pytorch_model_fsdp*"),
)
"""Names of states that a framework loads where they exist."""


def added_files(checkpoint: CheckpointMetadata, folder: RunFolder) -> list[str]:
    """The relative names of what was added to a checkpoint's folder; links are listed, and not followed.

    Empty for a single file, and for a record that does not say which files it is about.
    """
    recorded: Mapping[str, FileDigest | FileStat] = checkpoint.files or checkpoint.stats or {}
    path = folder.find(checkpoint.checkpoint_path)
    if not recorded or is_remote(checkpoint.checkpoint_path) or not path.is_dir():
        return []
    folders = {str(parent) for name in recorded for parent in PurePath(name).parents}
    return sorted(name for name in _entries(path, folders) if name not in recorded)


def log_added_files(checkpoint: CheckpointMetadata, folder: RunFolder) -> None:
    """Mention what was added to a checkpoint that is about to be loaded, and warn of what a framework would load."""
    added = added_files(checkpoint, folder)
    if not added:
        return
    log.warning(
        "%s has files that were added after it was recorded, and are no part of it: %s.",
        checkpoint.checkpoint_path,
        listing(added),
    )
    recorded = (checkpoint.files or checkpoint.stats or {}).keys()
    for name, effect in _effects(added, recorded):
        log.warning(
            "%s: %s was added after it was recorded, and a framework loads it %s. Remove it unless you mean it.",
            checkpoint.checkpoint_path,
            name,
            effect,
        )


def rescue_added_files(checkpoint: CheckpointMetadata, folder: RunFolder, *, disk: Disk) -> bool:
    """Move what was added to a checkpoint out of it before it is deleted; litter stays in it.

    Returns:
        Whether the checkpoint may be deleted now.
    """
    names = [name for name in added_files(checkpoint, folder) if not is_litter(name)]
    if not names:
        return True
    path = folder.root / checkpoint.checkpoint_path
    target = folder.free_name(folder.quarantine / f"{path.name}.added")
    try:
        folder.require_no_link(folder.quarantine)
        for name in names:
            disk.make_folders((target / name).parent)
            disk.replace(path / name, target / name)
            disk.sync_folder((target / name).parent)
            disk.sync_folder((path / name).parent)
    except (OSError, StorageError) as error:
        reason = error.message if isinstance(error, StorageError) else f"{error.strerror}."
        log.warning(
            "Keeping %s, which is no longer needed: it holds files that were added to it (%s), and they cannot be "
            "moved to %s: %s",
            *(checkpoint.checkpoint_path, listing(names), target, reason),
        )
        return False
    log.info("Moved what was added to %s to %s before deleting it: %s.", path.name, target, listing(names))
    return True


def _entries(path: Path, folders: Collection[str]) -> Iterator[str]:
    """Every file, and every link that is none of `folders`, below a path."""
    for parent, below, files in os.walk(path):
        inside = {each: os.path.relpath(os.path.join(parent, each), path) for each in (*below, *files)}
        yield from (inside[each] for each in files)
        yield from (
            inside[each]
            for each in below
            if os.path.islink(os.path.join(parent, each)) and inside[each] not in folders
        )


def _effects(added: Iterable[str], recorded: Collection[str]) -> Iterator[tuple[str, str]]:
    """The added files that a framework loads, each with what it does with it."""
    for name in added:
        path = PurePath(name)
        passed_over = [
            each for each in _LOADED_INSTEAD_OF.get(path.name, ()) if str(path.with_name(each)) in recorded
        ]
        if passed_over:
            yield name, f"instead of {passed_over[0]}"
        elif any(
            fnmatchcase(path.parts[0], pattern) or fnmatchcase(path.name, pattern) for pattern in _LOADED_BESIDE
        ):
            yield name, "beside what was saved"
