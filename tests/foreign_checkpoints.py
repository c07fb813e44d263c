"""Checkpoints as other code writes them: what `crashproof adopt` has to tell whole from torn."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

__all__ = [
    "adam",
    "write_accelerate",
    "write_archive",
    "write_hugging_face",
    "write_safetensors",
    "write_state",
]


def write_archive(path: Path, content: bytes = b"weights") -> Path:
    """An archive with checksums, as `torch.save` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", content * 50)
    return path


def write_state(path: Path, state: object) -> Path:
    """An archive as `torch.save` writes it, of plain values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(state, protocol=2))
        archive.writestr("archive/data/0", b"weights" * 50)
    return path


def adam(updates: int) -> dict[str, Any]:
    """The state of an optimizer of the Adam family, which counts its updates."""
    return {"state": {0: {"step": float(updates)}, 1: {"step": float(updates)}}, "param_groups": [{"lr": 0.1}]}


def write_safetensors(path: Path, num_bytes: int = 64) -> Path:
    """Two tensors, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "__metadata__": {"format": "pt"},
        "bias": {"dtype": "U8", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes // 4]},
        "weight": {"dtype": "U8", "shape": [num_bytes - num_bytes // 4], "data_offsets": [num_bytes // 4, num_bytes]},
    }
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\1" * num_bytes)
    return path


def write_hugging_face(folder: Path, step: int, *, num_shards: int = 1, num_ranks: int = 1, **state: Any) -> Path:
    """`checkpoint-<step>/` of a `Trainer`."""
    folder = folder / f"checkpoint-{step}"
    if num_shards == 1:
        write_safetensors(folder / "model.safetensors")
    else:
        names = [f"model-{number:05}-of-{num_shards:05}.safetensors" for number in range(1, num_shards + 1)]
        for name in names:
            write_safetensors(folder / name)
        index = {"metadata": {"total_size": 64}, "weight_map": {f"layer.{name}": name for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
        write_archive(folder / name)
    for rank in range(num_ranks):
        write_archive(folder / ("rng_state.pth" if num_ranks == 1 else f"rng_state_{rank}.pth"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "merges.txt").write_text("")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []} | state))
    return folder


def write_accelerate(folder: Path, step: int) -> Path:
    """`checkpoint_<step>/` of `accelerator.save_state`."""
    folder = folder / f"checkpoint_{step}"
    write_safetensors(folder / "model.safetensors")
    for name in ("optimizer.bin", "scheduler.bin"):
        write_archive(folder / name)
    (folder / "random_states_0.pkl").write_bytes(b"\x80\x04}.")
    return folder
