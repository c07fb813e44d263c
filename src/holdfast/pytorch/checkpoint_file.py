"""Save and load training state.

A checkpoint is data, never code: it is read with `weights_only=True`, so it may hold tensors, numbers, text, lists
and dicts, and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from holdfast.disk.atomic import WholeFile, write_whole
from holdfast.disk.files import REAL_DISK, Disk
from holdfast.errors import CheckpointDamaged, CheckpointMismatch

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint"]


def save_checkpoint(path: Path, state: Mapping[str, Any], *, disk: Disk = REAL_DISK) -> WholeFile:
    """Write training state whole or not at all; what it returns goes to `record_checkpoint(written=…)`.

    Raises:
        DiskFull, StorageUnwritable: an earlier file of that name is untouched.
    """
    return write_whole(path, lambda file: torch.save(dict(state), file), disk=disk)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read training state, all tensors on the CPU.

    Raises:
        CheckpointDamaged: missing, torn, or not written by `save_checkpoint`.
    """
    if not path.is_file():
        raise CheckpointDamaged(path, reason="there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointDamaged(path, reason=f"it cannot be read ({_first_line(error)})") from error
    if not isinstance(state, dict):
        raise CheckpointDamaged(path, reason="it holds no training state")
    return state


def load_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, path: Path) -> None:
    """Put weights into a module, all of them and no others.

    Raises:
        CheckpointMismatch: names or shapes differ; tells the first.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights:
            raise CheckpointMismatch(path, reason=f"it has no {name}")
        if name not in own:
            raise CheckpointMismatch(path, reason=f"its {name} has no place here")
        if own[name].shape != weights[name].shape:
            there, here = tuple(weights[name].shape), tuple(own[name].shape)
            raise CheckpointMismatch(path, reason=f"{name} has shape {there} there and {here} here")
    module.load_state_dict(dict(weights))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
