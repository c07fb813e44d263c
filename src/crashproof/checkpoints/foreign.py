"""Inspect checkpoints that other code wrote.

Each is checked as closely as its format allows, with Python's standard library alone: no framework is imported, and
nothing that a file names is ever called.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["KNOWN_NAMES", "Candidate", "Finding", "find_candidates", "inspect"]

KNOWN_NAMES = (
    "checkpoint_<step>.pt (.pth, .ckpt, .bin, .safetensors, .npz, .pkl, .json), ckpt_<step>.pt, step_<step>.pt, "
    "epoch=<n>-step=<step>.ckpt, checkpoint-<step>/, checkpoint_<step>/"
)

_STEP_IN_NAME = re.compile(r"(?:checkpoint|ckpt|step|epoch=\d+-step)[-_=]?(?P<step>\d{1,18})(?:-v\d+)?")
_FILES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz", ".pkl", ".json"})
_HUGGING_FACE_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("adapter_model.safetensors", "adapter_model.bin", "pytorch_model_fsdp_0", "pytorch_model_fsdp.bin"),
    "global_step*",
)
_NO_RESULTS = ("_runtime", "_per_second")
"""Endings of numbers in a log of evaluations that measure its speed."""
_MAX_HEADER_BYTES = 100_000_000
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file or folder named like a checkpoint."""

    step: int
    """From its name."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of an inspection."""

    problem: str | None = None
    """Why it is not intact; None if no problem was found."""
    unchecked: tuple[str, ...] = ()
    """Its files whose format has no checksum; only their size is checked."""
    evaluation: dict[str, float] | None = None
    """What its own trainer measured at its step."""


class _Torn(Exception):
    """A checkpoint is not intact; says why."""


def find_candidates(folder: Path) -> list[Candidate]:
    """Find what is named like a checkpoint in a folder, sorted by step."""
    found = []
    for path in folder.iterdir():
        is_file_name = path.suffix in _FILES
        name = _STEP_IN_NAME.fullmatch(path.stem if is_file_name else path.name)
        if name is not None and (is_file_name or path.is_dir()):
            found.append(Candidate(step=int(name["step"]), path=path))
    return sorted(found, key=lambda each: (each.step, each.path.name))


def inspect(candidate: Candidate) -> Finding:
    """Read a candidate and check whether it is intact."""
    try:
        return _inspect(candidate)
    except _Torn as torn:
        return Finding(problem=str(torn))
    except OSError as error:
        return Finding(problem=f"it cannot be read ({error.strerror})")


def _inspect(candidate: Candidate) -> Finding:
    path = candidate.path
    before = _fingerprint(path)
    unchecked, evaluation = _check_folder(candidate) if path.is_dir() else (_check_file(path), None)
    if _fingerprint(path) != before:
        raise _Torn("it changed while it was read: it is still being written")
    return Finding(unchecked=unchecked, evaluation=evaluation)


def _fingerprint(path: Path) -> list[tuple[str, int, int]]:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return [(str(each), (status := each.stat()).st_size, status.st_mtime_ns) for each in files]


def _check_file(path: Path) -> tuple[str, ...]:
    """Check a file; return its name if its format has no checksum."""
    if path.stat().st_size == 0:
        raise _Torn("it is empty")
    if path.suffix == ".json":
        _parse_json(path)
        return ()
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    elif zipfile.is_zipfile(path) or _starts_with(path, b"PK\x03\x04"):
        with path.open("rb") as file:
            _check_zip(file)
        return ()
    if _is_all_zeros(path):
        raise _Torn("it holds nothing but zeros")
    return (path.name,)


def _check_folder(candidate: Candidate) -> tuple[tuple[str, ...], dict[str, float] | None]:
    folder = candidate.path
    unchecked: list[str] = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = str(path.relative_to(folder))
        with _named(name):
            if path.suffix in _FILES and _check_file(path):
                unchecked.append(name)
            if path.name.endswith(".index.json"):
                _check_index(path)
            if path.name == ".metadata":
                _check_distributed(path)
            if path.suffix == ".distcp" and not path.with_name(".metadata").exists():
                raise _Torn("the .metadata beside it is missing, which is written last")
    evaluation = None
    if (folder / "trainer_state.json").exists():
        evaluation = _check_hugging_face(candidate)
    elif not (folder / ".metadata").exists() and not (folder / "random_states_0.pkl").exists():
        raise _Torn(
            "it has no trainer_state.json (transformers), no .metadata (torch.distributed.checkpoint) and no "
            "random_states_0.pkl (accelerate): the file that is written last is missing"
        )
    return tuple(unchecked), evaluation


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Prefix a problem with the name of its file."""
    try:
        yield
    except _Torn as torn:
        raise _Torn(f"{name}: {torn}") from None


def _check_hugging_face(candidate: Candidate) -> dict[str, float] | None:
    """Check what `Trainer` saves, and return its evaluation: the state comes last, so all else must be there."""
    folder = candidate.path
    state = _parse_json(folder / "trainer_state.json")
    step = state.get("global_step") if isinstance(state, dict) else None
    if step != candidate.step:
        said = "names no global_step" if step is None else f"is of step {step}"
        raise _Torn(f"its trainer_state.json {said}")
    if not any(any(folder.glob(name)) for name in _HUGGING_FACE_WEIGHTS):
        raise _Torn("it has no weights (model.safetensors, pytorch_model.bin or an adapter's)")
    # A Trainer that saves the model alone writes neither; sharded optimizers have other names.
    has_optimizer = any(any(folder.glob(name)) for name in ("optimizer*", "global_step*"))
    if (folder / "scheduler.pt").exists() and not has_optimizer:
        raise _Torn("optimizer.pt is missing beside scheduler.pt")
    if (folder / "optimizer.pt").exists() and not (folder / "scheduler.pt").exists():
        raise _Torn("scheduler.pt is missing beside optimizer.pt")
    ranks = {
        int(match[1]) for each in folder.iterdir() if (match := re.fullmatch(r"rng_state_(\d+)\.pth", each.name))
    }
    if missing := set(range(max(ranks, default=-1) + 1)) - ranks:
        raise _Torn(f"rng_state_{min(missing)}.pth is missing")
    return _evaluation(state, candidate.step)


def _evaluation(state: Mapping[str, Any], step: int) -> dict[str, float] | None:
    results = {
        name: float(value)
        for entry in state.get("log_history") or []
        if isinstance(entry, dict) and entry.get("step") == step
        for name, value in entry.items()
        if name.startswith("eval_") and not name.endswith(_NO_RESULTS) and isinstance(value, (int, float))
    }
    return results or None


def _check_index(index: Path) -> None:
    content = _parse_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise _Torn("it names no shards")
    for shard in sorted(set(map(str, shards.values()))):
        if not (index.parent / shard).is_file():
            raise _Torn(f"{shard} is missing, which it names")


def _check_safetensors(path: Path) -> None:
    """Check the layout: the length of a header, the header, and bytes that the header divides without a gap."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if num_bytes < 8 or length > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise _Torn("its header is cut off")
        try:
            header = json.loads(file.read(length))
            spans = sorted(tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__")
            end = 0
            for start, stop in spans:
                if start != end or stop < start:
                    raise _Torn("its header does not describe its bytes")
                end = stop
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _Torn("its header cannot be read") from None
    if num_bytes != 8 + length + end:
        raise _Torn(f"it has {num_bytes:,} bytes, and its header describes {8 + length + end:,}")


def _check_zip(file: BinaryIO) -> None:
    """Check an archive of `torch.save` or `numpy.savez`, which has a CRC of each entry."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _Torn(f"its archive is damaged or cut off ({error})") from None
    if broken is not None:
        raise _Torn(f"{broken} in its archive is damaged")


def _check_distributed(metadata: Path) -> None:
    """Check that every piece listed by `torch.distributed.checkpoint` exists; read those that are archives."""
    for name, pieces in _read_pieces(metadata).items():
        path = metadata.parent / name
        if not path.is_file():
            raise _Torn(f"{name} is missing")
        num_bytes = path.stat().st_size
        with path.open("rb") as file, _named(name):
            for offset, length in sorted(pieces):
                if offset + length > num_bytes:
                    raise _Torn(f"it has {num_bytes:,} bytes, and a piece of it ends at {offset + length:,}")
                file.seek(offset)
                piece = file.read(length)
                if piece.startswith(b"PK\x03\x04"):
                    _check_zip(io.BytesIO(piece))


def _read_pieces(metadata: Path) -> dict[str, list[tuple[int, int]]]:
    """Read the offset and length of each piece, by the name of its shard."""
    pieces: dict[str, list[tuple[int, int]]] = {}
    try:
        with metadata.open("rb") as file:
            places = _Inspector(file).load().__dict__["storage_data"].values()
        for place in places:
            pieces.setdefault(str(place.relative_path), []).append((int(place.offset), int(place.length)))
    except (
        *(ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, RecursionError),
        *(TypeError, ValueError, pickle.UnpicklingError),
    ):
        raise _Torn("it cannot be read") from None
    if not pieces:
        raise _Torn("it names no shards")
    return pieces


class _Inert:
    """A stand-in for any class that a pickle names: it keeps its state and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        return None

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Inspector(pickle.Unpickler):
    """Read a pickle without calling anything that it names."""

    def find_class(self, module: str, name: str) -> type:
        """A stand-in, except for the one container that is filled entry by entry."""
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (RecursionError, ValueError):
        raise _Torn("it is no JSON") from None


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _is_all_zeros(path: Path) -> bool:
    """Whether a file is what some file systems leave after a power loss."""
    return not any(block.strip(b"\0") for block in _read_blocks(path))


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
