"""Read plain values from pickles.

A pickle is a program: whoever loads it runs what it names. Here nothing that it names is ever called. Containers,
numbers and text come out as they are, a tensor of one element as a number, and any other object as a stand-in that
keeps its attributes. Neither torch nor NumPy is imported.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from crashproof.disk.regular_file import open_to_read

__all__ = ["UnreadablePickle", "attributes_of", "read_pickle", "read_saved_values"]

_MAX_BYTES = 1 << 30
"""Of one pickle; tensors do not count where they lie beside it."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles in a file of `torch.save` before archives."""
_NUM_LEGACY_HEADS = 3
_STORAGE_FORMATS = {
    "FloatStorage": "f",
    "DoubleStorage": "d",
    "HalfStorage": "e",
    "LongStorage": "q",
    "IntStorage": "i",
    "ShortStorage": "h",
    "CharStorage": "b",
    "ByteStorage": "B",
}
_NUMPY_FORMATS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "u8": "Q", "u4": "I"}
_BAD_PICKLE = (
    *(ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, RecursionError),
    *(TypeError, ValueError, struct.error, pickle.UnpicklingError),
)
_BAD_ARCHIVE = (NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


class UnreadablePickle(Exception):
    """A file's values cannot be read; says why."""


def read_saved_values(path: Path) -> object:
    """Read what `torch.save` or `pickle.dump` wrote, as plain values.

    Raises:
        UnreadablePickle: it is damaged, too large, or no pickle.
        OSError, FileUnreadable: it cannot be opened or read.
    """
    with open_to_read(path) as file:
        if file.peek(4)[:4] == b"PK\x03\x04":  # type: ignore[attr-defined]  # it is buffered.
            return _read_archive(file)
        return _read_plain(file)


def read_pickle(file: BinaryIO) -> object:
    """Read one pickle, as plain values.

    Raises:
        UnreadablePickle: it is damaged, too large, or no pickle.
    """
    return _unpickle(_Inspector(_Bounded(file)))


def attributes_of(value: object) -> Mapping[object, object]:
    """The entries of a mapping or the attributes of a stand-in; empty for anything else."""
    if isinstance(value, Mapping):
        return value
    return dict(vars(value).items()) if isinstance(value, _StandIn) else {}


def _read_archive(file: BinaryIO) -> object:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [each for each in archive.namelist() if each == "data.pkl" or each.endswith("/data.pkl")]
            if not names:
                raise UnreadablePickle("it is an archive that torch.save did not write")
            with archive.open(names[0]) as content:
                return _unpickle(_Inspector(_Bounded(content), _Storages(archive, names[0])))
    except _BAD_ARCHIVE as error:
        raise UnreadablePickle(f"its archive is damaged or cut off ({error})") from None


def _read_plain(file: BinaryIO) -> object:
    """Read a pickle, or the last of the pickles that begin a file of an old `torch.save`."""
    bounded = _Bounded(file)
    first = _unpickle(_Inspector(bounded))
    if first != _LEGACY_MAGIC:
        return first
    for _ in range(_NUM_LEGACY_HEADS - 1):
        _unpickle(_Inspector(bounded))
    return _unpickle(_Inspector(bounded))


def _unpickle(inspector: _Inspector) -> object:
    try:
        return inspector.load()
    except UnreadablePickle:
        raise
    except _BAD_ARCHIVE as error:
        raise UnreadablePickle(f"its archive is damaged or cut off ({error})") from None
    except _BAD_PICKLE:
        raise UnreadablePickle("it is no pickle, or is cut off") from None


class _Bounded:
    """A file of which no more than a limit can be read, so that no pickle fills the memory."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = _MAX_BYTES

    def read(self, num_bytes: int = -1) -> bytes:
        """Read some bytes."""
        if num_bytes < 0 or num_bytes > self._left:
            raise UnreadablePickle(f"its pickle has more than {_MAX_BYTES:,} bytes")
        return self._count(self._file.read(num_bytes))

    def readline(self) -> bytes:
        """Read one line."""
        return self._count(self._file.readline(self._left + 1))

    def _count(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left < 0:
            raise UnreadablePickle(f"its pickle has more than {_MAX_BYTES:,} bytes")
        return content


class _StandIn:
    """Any class or object that a pickle names: it keeps its arguments and state, and does nothing."""

    def __new__(cls, *args: object, **_: object) -> _StandIn:
        made = super().__new__(cls)
        object.__setattr__(made, "_args", args)
        return made

    def __init__(self, *_: object, **__: object) -> None:
        return None

    def __call__(self, *_: object, **__: object) -> _StandIn:
        return _StandIn()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: object, value: object) -> None:
        return None

    def append(self, _: object) -> None:
        """Take an element of a list of another class."""

    def extend(self, _: object) -> None:
        """Take elements of a list of another class."""

    def add(self, _: object) -> None:
        """Take an element of a set of another class."""


class _AnyDict(OrderedDict[object, object]):
    """A dict of any class, such as `defaultdict`: what it was made with does not matter."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        return None


class _Storages:
    """The storages of tensors in an archive of `torch.save`."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive = archive
        self._prefix = name.removesuffix("data.pkl")

    def number_at(self, storage: _Storage, index: int) -> float | None:
        """One element; None where it is not in the archive, or of a type that is not read."""
        code = _STORAGE_FORMATS.get(storage.kind)
        name = f"{self._prefix}data/{storage.key}"
        if code is None or name not in self._archive.NameToInfo:
            return None
        size = struct.calcsize(code)
        with self._archive.open(name) as content:
            content.seek(index * size, os.SEEK_SET)
            element = content.read(size)
        return float(struct.unpack(f"{self._order()}{code}", element)[0]) if len(element) == size else None

    def _order(self) -> str:
        name = f"{self._prefix}byteorder"
        is_big = name in self._archive.NameToInfo and self._archive.read(name).strip() == b"big"
        return ">" if is_big else "<"


class _Storage:
    """Where the elements of a tensor lie."""

    def __init__(self, kind: str, key: str) -> None:
        self.kind = kind
        self.key = key


class _Inspector(pickle.Unpickler):
    """Unpickle with stand-ins for all that is no plain value."""

    def __init__(self, file: Any, storages: _Storages | None = None) -> None:
        super().__init__(file)
        self._storages = storages
        self._kinds: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, but for dicts and for what holds numbers."""
        if (module, name) in {("collections", "OrderedDict"), ("builtins", "dict")}:
            return OrderedDict
        if (module, name) == ("collections", "defaultdict"):
            return _AnyDict
        if module == "torch._utils" and name in {"_rebuild_tensor", "_rebuild_tensor_v2"}:
            return self._rebuilt
        if (module, name) == ("_codecs", "encode"):
            return _latin_bytes
        if module.startswith("numpy") and name == "scalar":
            return _numpy_number
        return self._kinds.setdefault(name, type(name if name.isidentifier() else "_", (_StandIn,), {}))

    def persistent_load(self, pid: Any) -> object:
        """Where a tensor's elements lie, or the class of a module."""
        is_named = isinstance(pid, tuple) and len(pid) > 2 and isinstance(pid[1], type)
        if not is_named or pid[0] not in ("storage", "module"):
            return _StandIn()
        return pid[1] if pid[0] == "module" else _Storage(pid[1].__name__, str(pid[2]))

    def _rebuilt(self, storage: object, offset: object, shape: object, *_: object) -> object:
        """The number that a tensor of one element holds; a stand-in for any other tensor."""
        has_one = isinstance(shape, tuple) and all(isinstance(each, int) for each in shape) and prod(shape) == 1
        if has_one and isinstance(offset, int) and isinstance(storage, _Storage) and self._storages is not None:
            number = self._storages.number_at(storage, offset)
            if number is not None:
                return number
        return _StandIn()


def _latin_bytes(text: object, *_: object) -> object:
    """Bytes as old protocols spell them."""
    return text.encode("latin-1") if isinstance(text, str) else _StandIn()


def _numpy_number(dtype: object = None, content: object = None, *_: object) -> object:
    """The number that a NumPy scalar holds."""
    args: tuple[object, ...] = getattr(dtype, "_args", ())
    code = _NUMPY_FORMATS.get(str(args[0])) if args else None
    if code is None or not isinstance(content, bytes) or len(content) != struct.calcsize(code):
        return _StandIn()
    unpack: Callable[..., tuple[Any, ...]] = struct.unpack
    return unpack(f"<{code}", content)[0]
