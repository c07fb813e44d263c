"""Check files whose formats are known.

Each is checked as closely as its format allows, with Python's standard library alone: no framework is imported, and
nothing that a file names is ever called.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from crashproof.checkpoints.foreign.pickled_values import UnreadablePickle, attributes_of, read_pickle

__all__ = ["SUFFIXES", "Torn", "check_distributed", "check_file", "check_index", "named", "parse_json"]

SUFFIXES = frozenset(
    {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz", ".pkl", ".json", ".tar", ".pt2", ".state", ".distcp"}
)
"""Endings of files that are looked into."""
_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_END_MAGIC = b"PK\x05\x06"
_ZIP_END_BYTES = 22
_MAX_HEADER_BYTES = 100_000_000
_BLOCK_BYTES = 1 << 20


class Torn(Exception):
    """A checkpoint is not intact; says why."""


def check_file(path: Path) -> tuple[str, ...]:
    """Check a file; return its name if its format has no checksum."""
    if path.stat().st_size == 0:
        raise Torn("it is empty")
    if path.suffix == ".json":
        parse_json(path)
        return ()
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    elif zipfile.is_zipfile(path) or _starts_with(path, _ZIP_MAGIC):
        with path.open("rb") as file:
            _check_zip(file)
        return ()
    if _is_all_zeros(path):
        raise Torn("it holds nothing but zeros")
    return (path.name,)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Prefix a problem with the name of its file."""
    try:
        yield
    except Torn as torn:
        raise Torn(f"{name}: {torn}") from None


def check_index(index: Path) -> None:
    """Check that every shard listed by an index of weights exists."""
    content = parse_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise Torn("it names no shards")
    for shard in sorted(set(map(str, shards.values()))):
        if not (index.parent / shard).is_file():
            raise Torn(f"{shard} is missing, which it names")


def _check_safetensors(path: Path) -> None:
    """Check the layout: the length of a header, the header, and bytes that the header divides without a gap."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if num_bytes < 8 or length > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise Torn("its header is cut off")
        try:
            header = json.loads(file.read(length))
            spans = sorted(tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__")
            end = 0
            for start, stop in spans:
                if start != end or stop < start:
                    raise Torn("its header does not describe its bytes")
                end = stop
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Torn("its header cannot be read") from None
    if num_bytes != 8 + length + end:
        raise Torn(f"it has {num_bytes:,} bytes, and its header describes {8 + length + end:,}")


def _check_zip(file: BinaryIO) -> None:
    """Check an archive of `torch.save` or `numpy.savez`, which has a CRC of each entry."""
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
            is_ended = bool(archive.comment) or _ends_archive(file)
    except (EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise Torn(f"its archive is damaged or cut off ({error})") from None
    if broken is not None:
        raise Torn(f"{broken} in its archive is damaged")
    if not is_ended:
        raise Torn("the end of its archive is damaged")


def _ends_archive(file: BinaryIO) -> bool:
    """Whether a file ends with the end of an archive without a comment; Python reads others as well."""
    file.seek(-_ZIP_END_BYTES, io.SEEK_END)
    end = file.read()
    return end.startswith(_ZIP_END_MAGIC) and end.endswith(b"\0\0")


def check_distributed(metadata: Path) -> None:
    """Check that every piece listed by `torch.distributed.checkpoint` exists; read those that are archives."""
    for name, pieces in _read_pieces(metadata).items():
        path = metadata.parent / name
        if not path.is_file():
            raise Torn(f"{name} is missing")
        num_bytes = path.stat().st_size
        with path.open("rb") as file, named(name):
            for offset, length in sorted(pieces):
                if offset + length > num_bytes:
                    raise Torn(f"it has {num_bytes:,} bytes, and a piece of it ends at {offset + length:,}")
                file.seek(offset)
                piece = file.read(length)
                if piece.startswith(_ZIP_MAGIC):
                    _check_zip(io.BytesIO(piece))


def _read_pieces(metadata: Path) -> dict[str, list[tuple[int, int]]]:
    """Read the offset and length of each piece, by the name of its shard."""
    pieces: dict[str, list[tuple[int, int]]] = {}
    try:
        with metadata.open("rb") as file:
            places = attributes_of(attributes_of(read_pickle(file))["storage_data"]).values()
        for place in map(attributes_of, places):
            name, offset, length = (place[each] for each in ("relative_path", "offset", "length"))
            pieces.setdefault(str(name), []).append((_as_int(offset), _as_int(length)))
    except (KeyError, TypeError, UnreadablePickle):
        raise Torn("it cannot be read") from None
    if not pieces:
        raise Torn("it names no shards")
    return pieces


def _as_int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def parse_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(path.read_bytes())
    except (RecursionError, ValueError):
        raise Torn("it is no JSON") from None


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
