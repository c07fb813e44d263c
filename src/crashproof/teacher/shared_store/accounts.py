"""Who pays, in a store that many runs share."""

from __future__ import annotations

import secrets

import msgspec

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK, storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import StorageUnwritable
from crashproof.records.checksummed_line import add_checksum, is_intact
from crashproof.records.version import FORMAT_VERSION

__all__ = ["account_of"]


def account_of(folder: RunFolder) -> str:
    """The name under which a shared store counts what a run spends: made once, kept in the run, moved along with it.

    Raises:
        StorageUnwritable: the file is there and damaged; without it a budget would begin anew.
    """
    path = folder.progress / "account.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        account = f"run_{secrets.token_hex(8)}"
        with storage_errors(path):
            REAL_DISK.make_folders(folder.progress)
        write_bytes_atomically(path, add_checksum(msgspec.json.encode({"v": FORMAT_VERSION, "account": account})))
        return account
    if not is_intact(content):
        raise StorageUnwritable(path, reason="it is damaged; restore it, or remove it to begin a new account")
    return str(msgspec.json.decode(content)["account"])
