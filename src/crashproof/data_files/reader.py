"""Records of files and folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from crashproof.data_files.arrow_tables import read_arrow, read_parquet
from crashproof.data_files.compression import opened
from crashproof.data_files.json_documents import read_json
from crashproof.data_files.json_lines_file import read_lines
from crashproof.data_files.record import Record
from crashproof.data_files.selection import content_suffix
from crashproof.data_files.text_tables import read_table
from crashproof.errors import DataError

__all__ = ["digest_files", "read_records", "require_readable"]

_BINARY = {".parquet": read_parquet, ".arrow": read_arrow}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, one at a time; what it contains is told by its suffix, and without a known one is lines.

    Raises:
        DataError: The file is missing or damaged, or a record is malformed; names its place.
        MissingExtra: The package that reads this kind of file is not installed.
    """
    suffix = content_suffix(path)
    if suffix in _BINARY:
        _require_file(path)
        yield from _BINARY[suffix](path)
        return
    with opened(path) as file:
        if suffix == ".json":
            yield from read_json(file, path)
        elif suffix in _DELIMITERS:
            yield from read_table(file, path, delimiter=_DELIMITERS[suffix])
        else:
            yield from read_lines(file, path)


def require_readable(path: Path) -> None:
    """Refuse a file that `read_records` cannot open; what a folder has in it shows when it is read.

    Raises:
        DataError: The file is missing, may not be read, or is compressed in a way that nothing reads.
        MissingExtra: The package that reads its compression is not installed.
    """
    if path.is_dir():
        return
    if content_suffix(path) in _BINARY:
        _require_file(path)
    else:
        with opened(path):
            pass


def digest_files(paths: Sequence[Path]) -> str:
    """SHA-256 of a file's bytes; of several files, over the digest and name of each in order."""
    digests = [_digest(path) for path in paths]
    if len(paths) == 1:
        return digests[0]
    lines = "".join(f"{digest} {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(path, "it cannot be read (No such file)", hint="Check the path.")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(path, f"it cannot be read ({error.strerror})", hint="Check the path.") from error
