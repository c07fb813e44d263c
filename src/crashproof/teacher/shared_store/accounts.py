"""A run's account in a shared store."""

from __future__ import annotations

import secrets

import msgspec

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK, storage_errors
from crashproof.disk.regular_file import read_small
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import StorageUnwritable
from crashproof.records.lines.checksummed_line import add_checksum, is_intact
from crashproof.records.version import FORMAT_VERSION

__all__ = ["account_of"]

_MAX_BYTES = 64 << 10


def account_of(folder: RunFolder) -> str:
    """The account name under which a shared store books a run's spending; created once, and stored in the run.

    Raises:
        StorageUnwritable: the file is damaged; without it the budget would start over.
    """
    path = folder.progress / "account.json"
    try:
        content = read_small(path, most_bytes=_MAX_BYTES)
    except FileNotFoundError:
        account = f"run_{secrets.token_hex(8)}"
        with storage_errors(path):
            REAL_DISK.make_folders(folder.progress)
        write_bytes_atomically(path, add_checksum(msgspec.json.encode({"v": FORMAT_VERSION, "account": account})))
        return account
    if not is_intact(content):
        raise StorageUnwritable(path, reason="it is damaged; restore it, or remove it to start a new account")
    return str(msgspec.json.decode(content)["account"])
