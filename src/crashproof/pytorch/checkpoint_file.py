"""Training state in one file.

The file is a zip archive written by `torch.save`: any PyTorch program can read it with `weights_only=True`. It
contains data, never code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from crashproof.disk.atomic import WholeFile, write_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import CheckpointDamaged, CheckpointMismatch

__all__ = ["load_checkpoint", "require_fit", "save_checkpoint", "write_state"]

_MAX_NAMED = 3


def save_checkpoint(path: Path, content: Mapping[str, object], *, disk: Disk = REAL_DISK) -> WholeFile:
    """Write tensors and plain values atomically.

    Raises:
        DiskFull, StorageUnwritable: An existing file of this name is unchanged.
    """
    return write_atomically(path, lambda file: write_state(dict(content), file), disk=disk)


def write_state(content: dict[str, object], file: BinaryIO) -> None:
    """Write to an open file with `torch.save`.

    After a write that failed PyTorch raises an unrelated RuntimeError; whoever opened the file raises the failure.
    """
    torch.save(content, file)


def load_checkpoint(path: Path, *, is_mapped: bool = False) -> dict[str, Any]:
    """Load a file of `save_checkpoint` on the CPU after checking its integrity.

    With `is_mapped`, a tensor is read when it is looked at, so the file has to stay until then; a process that needs
    only some rows of each never holds the rest.

    Raises:
        CheckpointDamaged: It is missing, torn or altered, or contains more than data.
    """
    if not path.is_file():
        raise CheckpointDamaged(path, reason="there is no such file")
    _require_intact_archive(path)
    try:
        content = _load_mapped(path) if is_mapped else _load(path)
    except Exception as error:  # An altered pickle can raise almost anything.
        raise CheckpointDamaged(path, reason=f"PyTorch cannot read it ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointDamaged(path, reason=f"it contains a {type(content).__name__} instead of training state")
    return content


def require_fit(path: Path, saved: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> None:
    """Require that the shapes of saved tensors match this architecture, before any of them is loaded.

    Raises:
        CheckpointMismatch: Names the first weights that are missing, unknown or of another shape.
    """
    differences = [f"{name} is missing in it" for name in expected if name not in saved]
    differences += [f"{name} is unknown here" for name in saved if name not in expected]
    differences += [
        f"{name} has shape {tuple(saved[name])}, {tuple(shape)} is expected"
        for name, shape in expected.items()
        if name in saved and saved[name] != shape
    ]
    if differences:
        raise CheckpointMismatch(path, reason=_listing(differences))


def _load(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_mapped(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # Some file systems map nothing; whatever is wrong with the file comes up again.
        return _load(path)


def _require_intact_archive(path: Path) -> None:
    """Compare every entry with its CRC-32: `torch.load` itself would return altered weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # An altered zip header can raise almost anything.
        raise CheckpointDamaged(path, reason=f"it is torn or altered ({_first_line(error)})") from error
    if broken is not None:
        raise CheckpointDamaged(path, reason=f"its entry {broken} was altered")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _listing(differences: list[str]) -> str:
    rest = len(differences) - _MAX_NAMED
    return "; ".join(differences[:_MAX_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
