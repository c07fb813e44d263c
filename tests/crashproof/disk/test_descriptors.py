from __future__ import annotations

import os
from pathlib import Path

import pytest

from crashproof.disk import descriptors
from crashproof.disk.descriptors import above_standard


def test_a_descriptor_of_a_standard_stream_is_exchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    unchanged = above_standard(file)
    monkeypatch.setattr(descriptors, "_FIRST_FREE", file + 1)
    exchanged = above_standard(file)

    assert file == unchanged
    assert exchanged > file
    assert not os.get_inheritable(exchanged)
    assert not is_open_as(file, tmp_path / "file")
    os.close(exchanged)


def is_open_as(descriptor: int, path: Path) -> bool:
    """Whether a descriptor is that of a file; another thread may have been given its number meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
