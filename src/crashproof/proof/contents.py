"""Digest what is in a checkpoint, by name."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from crashproof.disk.regular_file import open_to_read
from crashproof.errors import CheckpointDamaged
from crashproof.optional_dependencies import is_installed
from crashproof.tracking.witness.leaves import leaves_of

__all__ = ["contents_of"]

_OF_TORCH = {".bin", ".ckpt", ".pt", ".pth"}
_NO_STATE = {".html", ".json", ".log", ".md", ".txt", ".yaml", ".yml"}
"""Of the files in a checkpoint's folder: notes and settings, with times and paths in them."""
_BLOCK_BYTES = 1 << 20
_DIGITS = 16
_HEADER = "__metadata__"


def contents_of(path: Path) -> dict[str, str]:
    """The digest of each tensor and value in a checkpoint; of a file that only its framework can read, of its bytes.

    Nothing in a file is executed.
    """
    if path.is_file():
        return _contents_of_file(path, path.name, "")
    found: dict[str, str] = {}
    for file in sorted(each for each in path.rglob("*") if each.is_file() and each.suffix not in _NO_STATE):
        name = file.relative_to(path).as_posix()
        found |= _contents_of_file(file, name, f"{name}.")
    return found


def _contents_of_file(path: Path, name: str, prefix: str) -> dict[str, str]:
    found: dict[str, str] | None = None
    if path.suffix in _OF_TORCH:
        found = _contents_by_torch(path)
    elif path.suffix == ".safetensors":
        found = dict(_contents_of_safetensors(path))
    elif path.suffix == ".npz":
        found = dict(_contents_of_archive(path))
    elif path.suffix == ".json":
        found = _contents_of_json(path)
    if found is None:
        return {name: _digest_of_file(path)}
    return {f"{prefix}{each}": digest for each, digest in found.items()}


def _contents_by_torch(path: Path) -> dict[str, str] | None:
    if not is_installed("torch"):
        return None
    # Only where there is such a file: it takes seconds to import.
    from crashproof.pytorch.checkpoint_file import load_checkpoint

    try:
        return leaves_of(load_checkpoint(path, is_mapped=True)).values
    except CheckpointDamaged:
        # Most often it holds more than data, which is not loaded.
        return None


def _contents_of_safetensors(path: Path) -> Iterator[tuple[str, str]]:
    with open_to_read(path) as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes))
        for name, tensor in sorted(header.items()):
            if name == _HEADER:
                continue
            begin, end = tensor["data_offsets"]
            file.seek(8 + num_bytes + begin)
            kind = f"{tensor['dtype']} {tensor['shape']}".encode()
            yield name, hashlib.sha256(kind + file.read(end - begin)).hexdigest()[:_DIGITS]


def _contents_of_archive(path: Path) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(path) as archive:
        for each in archive.infolist():
            yield each.filename.removesuffix(".npy"), hashlib.sha256(archive.read(each)).hexdigest()[:_DIGITS]


def _contents_of_json(path: Path) -> dict[str, str] | None:
    with open_to_read(path) as file:
        try:
            content = json.load(file)
        except ValueError:
            return None
    return leaves_of(content if isinstance(content, dict) else {"content": content}).values


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open_to_read(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()[:_DIGITS]
