"""Files read through their compression."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from crashproof.data_files.zstd_frames import require_complete_frames
from crashproof.errors import DataError
from crashproof.optional_dependencies import missing_extra

__all__ = ["COMPRESSED_SUFFIXES", "opened"]

COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")

_REFUSED = {
    b"PK\x03\x04": "a zip archive",
    b"\x04\x22\x4d\x18": "compressed with LZ4",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
}
_LONGEST_MAGIC = 6
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed if it begins like a compressed one, whatever its name says.

    It is decompressed piece by piece as it is read, so a small file that stands for a large one takes no more memory
    than what the caller asks for at a time.

    Raises:
        DataError: The file cannot be read, or what is compressed is damaged or ends early.
        MissingExtra: Nothing that is installed reads this compression.
    """
    try:
        with path.open("rb") as file, _decompressed(path, file) as content:
            yield content
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # Decompressors report damage as an OSError without a number.
        if error.errno is None:
            raise _damaged(path, error) from error
        raise DataError(path, f"it cannot be read ({error.strerror})", hint="Check the path.") from error
    except Exception as error:
        # The class of its errors is known only where zstandard is installed.
        if type(error).__name__ != "ZstdError":
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(path, f"its compressed content is damaged or ends early ({error})", hint="Copy it once more.")


def _decompressed(path: Path, file: io.BufferedReader) -> BinaryIO:
    magic = file.peek(_LONGEST_MAGIC)[:_LONGEST_MAGIC]
    for beginning, what in _REFUSED.items():
        if magic.startswith(beginning):
            raise DataError(path, f"it is {what}", hint="Unpack it, or use gzip, zstd, bzip2 or xz.")
    for beginning, open_stream in _STREAMS.items():
        if magic.startswith(beginning):
            return open_stream(file)
    return file


def _gzip(file: IO[bytes]) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file))


def _bzip2(file: IO[bytes]) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(file))


def _xz(file: IO[bytes]) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(file))


def _zstd(file: io.BufferedReader) -> BinaryIO:
    """With the first that is there: Python's own, zstandard, pyarrow."""
    require_complete_frames(file)
    if sys.version_info >= (3, 14):
        return cast(BinaryIO, importlib.import_module("compression.zstd").ZstdFile(file))
    if find_spec("zstandard") is not None:
        zstandard: Any = importlib.import_module("zstandard")
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
        return io.BufferedReader(stream)
    if find_spec("pyarrow") is not None:
        pyarrow: Any = importlib.import_module("pyarrow")
        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    raise missing_extra("zstd")


_STREAMS: dict[bytes, Callable[[io.BufferedReader], BinaryIO]] = {
    b"\x1f\x8b": _gzip,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"BZh": _bzip2,
    b"\xfd7zXZ\x00": _xz,
}
"""Readers by how a file begins."""
