"""Completeness of zstd files."""

from __future__ import annotations

import os
from io import BufferedReader

__all__ = ["require_complete_frames"]

_FRAME = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)
_RUN, _RESERVED = 1, 3


def require_complete_frames(file: BufferedReader) -> None:
    """Follow the headers of all frames and blocks to the end of the file; then go back to its beginning.

    Some decompressors take a file that was cut off for one that ends there.

    Raises:
        EOFError: The file ends inside a frame, or contains something else.
    """
    size = os.fstat(file.fileno()).st_size
    while file.tell() < size:
        _skip_frame(file)
    if file.tell() > size:
        raise EOFError("it ends inside a frame")
    file.seek(0)


def _skip_frame(file: BufferedReader) -> None:
    magic = _read(file, 4)
    if magic[1:] == _SKIPPABLE and magic[0] >> 4 == 5:
        file.seek(int.from_bytes(_read(file, 4), "little"), os.SEEK_CUR)
        return
    if magic != _FRAME:
        raise EOFError("something else follows a frame")
    descriptor = _read(file, 1)[0]
    is_single_segment = bool(descriptor & 0x20)
    size_bytes = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    window_bytes = 0 if is_single_segment else 1
    file.seek(window_bytes + _DICTIONARY_ID_BYTES[descriptor & 3] + size_bytes, os.SEEK_CUR)
    while not _skip_block(file):
        pass
    # A checksum of the content.
    file.seek(4 if descriptor & 4 else 0, os.SEEK_CUR)


def _skip_block(file: BufferedReader) -> bool:
    """Skip a block; whether it was the frame's last."""
    header = int.from_bytes(_read(file, 3), "little")
    kind = header >> 1 & 3
    if kind == _RESERVED:
        raise EOFError("a block is of an unknown kind")
    file.seek(1 if kind == _RUN else header >> 3, os.SEEK_CUR)
    return bool(header & 1)


def _read(file: BufferedReader, num_bytes: int) -> bytes:
    content = file.read(num_bytes)
    if len(content) < num_bytes:
        raise EOFError("it ends inside a frame")
    return content
