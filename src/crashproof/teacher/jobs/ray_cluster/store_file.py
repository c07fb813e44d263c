"""Which file a store is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from crashproof.clock import SYSTEM_CLOCK
from crashproof.disk.files import storage_errors

__all__ = ["StoreFile", "store_file_of", "with_absolute_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFile:
    """A file that two processes can compare: the same name may be another file on another machine."""

    boot_id: str
    """Of the machine that looked."""
    device: int
    inode: int


def store_file_of(url: str) -> StoreFile | None:
    """The file of a SQLite store that exists; None for a server."""
    path = _path_in(url)
    if path is None:
        return None
    with storage_errors(path):
        found = path.stat()
    return StoreFile(boot_id=SYSTEM_CLOCK.boot_id(), device=found.st_dev, inode=found.st_ino)


def with_absolute_path(url: str) -> str:
    """The same store, for processes that work in another folder."""
    path = _path_in(url)
    if path is None:
        return url
    return make_url(url).set(database=str(path.absolute())).render_as_string(hide_password=False)


def _path_in(url: str) -> Path | None:
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(parsed.database) if is_file and parsed.database else None
