"""Which files a path stands for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from crashproof.data_files.compression import COMPRESSED_SUFFIXES
from crashproof.errors import DataError

__all__ = ["SUFFIXES", "content_suffix", "select_files"]

log = logging.getLogger("crashproof")

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Of the files that are read in a folder, each also compressed."""

_SPLITS = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=[-_.\d]|$)", re.IGNORECASE)
_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_MOST_NAMED = 5
_SAVE_AGAIN = "Save the dataset again."

_StructT = TypeVar("_StructT", bound=msgspec.Struct)


class _State(msgspec.Struct, frozen=True):
    """`state.json` of a dataset that was saved to disk."""

    data_files: list[dict[str, str]] = msgspec.field(name="_data_files")
    indices: object = msgspec.field(name="_indices_data_files", default=None)


class _Splits(msgspec.Struct, frozen=True):
    """`dataset_dict.json`."""

    splits: list[str]


def select_files(paths: Path | Sequence[Path], *, split: str | None = None) -> list[Path]:
    """The files of one path or several, in their order; those of a folder in the order of their names.

    Args:
        paths: Files, folders of files, or folders that `datasets` saved.
        split: The split to read where a folder has several.

    Raises:
        DataError: A folder has nothing to read, or several splits of which none was named.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    return [file for path in given for file in (_in_folder(path, split) if path.is_dir() else [path])]


def content_suffix(path: Path) -> str:
    """The suffix that names what a file contains, such as `.jsonl` of `a.jsonl.gz`, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        return _saved_split(folder, split)
    if (folder / "state.json").is_file():
        return _saved_files(folder)
    found: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        is_hidden = path.name.startswith((".", "_")) or path.name in _METADATA
        is_data = path.is_file() and not is_hidden and content_suffix(path) in SUFFIXES
        (found if is_data else others).append(path)
    files = _of_split(folder, found, split)
    if not files:
        hint = f"It may contain files named {', '.join(SUFFIXES)}, also compressed (.gz, .zst, .bz2, .xz)."
        raise DataError(folder, "the folder contains no data files", hint=hint)
    _report(folder, files, [*others, *(path for path in found if path not in files)])
    return files


def _saved_split(folder: Path, split: str | None) -> list[Path]:
    splits = _decode(folder / "dataset_dict.json", _Splits).splits
    chosen = split or (splits[0] if len(splits) == 1 else None)
    if chosen not in splits:
        problem = f"it has no split {split}" if split else "it has several splits"
        raise DataError(folder, f"{problem}: {', '.join(splits)}", hint="Name one of them as data.split.")
    assert chosen is not None
    return _saved_files(folder / chosen)


def _saved_files(folder: Path) -> list[Path]:
    state = _decode(folder / "state.json", _State)
    if state.indices:
        raise DataError(
            folder,
            "the dataset was saved with an indices mapping, which is not applied",
            hint="Call flatten_indices() on it, and save it again.",
        )
    names = [each.get("filename", "") for each in state.data_files]
    if any(not name or Path(name).name != name for name in names):
        raise DataError(folder / "state.json", "it names files outside its folder", hint=_SAVE_AGAIN)
    return [folder / name for name in names]


def _of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    """Those of the files that belong to the split, if their names tell."""
    splits = {path: match[1].lower() for path in files if (match := _SPLITS.match(path.name))}
    if split is not None:
        return [path for path in files if splits.get(path, path.name.partition(".")[0]) == split.lower()]
    if len(set(splits.values())) > 1:
        names = ", ".join(dict.fromkeys(splits.values()))
        raise DataError(folder, f"its files belong to several splits: {names}", hint="Name one as data.split.")
    return files


def _report(folder: Path, files: list[Path], skipped: list[Path]) -> None:
    log.info("%s: reading %s.", folder, _named(files))
    if skipped:
        log.warning("%s: skipping %s: no data files of this split, hidden, or folders.", folder, _named(skipped))


def _named(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _decode(path: Path, kind: type[_StructT]) -> _StructT:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(
            path, f"it is not as `datasets` writes it ({error})", hint="Save the dataset again."
        ) from error
    except OSError as error:
        raise DataError(path, f"it cannot be read ({error.strerror})", hint=_SAVE_AGAIN) from error
