from __future__ import annotations

import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from crashproof.errors import CheckpointDamaged
from crashproof.pytorch.checkpoint_file import save_checkpoint
from crashproof.pytorch.ranks import SingleRank
from crashproof.pytorch.sharded_checkpoint import load_rank_state, load_shared_state, load_tensors, tensor_shapes

TENSORS = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as one rank writes it."""
    path = tmp_path / "checkpoint_3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(TENSORS), storage_writer=FileSystemWriter(path), no_dist=True)
    save_checkpoint(path / "state.pt", {"format": 2})
    save_checkpoint(path / "rank_0.pt", {"random": torch.zeros(3)})
    return path


class _Runs:
    """A pickle of it calls something when it is read."""

    def __init__(self, called: Any, *arguments: Any) -> None:
        self._called = called
        self._arguments = arguments

    def __reduce__(self) -> Any:
        return self._called, self._arguments


def test_tensors_are_read_back_bit_for_bit(folder: Path) -> None:
    found = {name: torch.zeros_like(each) for name, each in TENSORS.items()}

    load_tensors(folder, found, SingleRank())

    assert all(torch.equal(found[name], each) for name, each in TENSORS.items())
    assert {"a": torch.Size([3, 4]), "b": torch.Size([5])} == tensor_shapes(folder)
    assert {"format": 2} == load_shared_state(folder)


def test_a_rank_that_wrote_nothing_has_no_state(folder: Path) -> None:
    assert None is load_rank_state(folder, 1)
    assert ["random"] == list(load_rank_state(folder, 0) or {})


def dotted(module: str, name: str, argument: str) -> bytes:
    """A pickle of protocol 4 that calls `name`, looked up through dots in a module that is allowed."""
    body = b"".join(
        b"\x8c" + bytes([len(word)]) + word.encode() + (b"\x94" if place < 2 else b"")
        for place, word in enumerate((module, name))
    )
    text = argument.encode()
    return b"\x80\x04" + body + b"\x93" + b"\x8c" + bytes([len(text)]) + text + b"\x85R."


@pytest.mark.parametrize("way", ["os.system", "eval", "through a dot", "a class beside", "an ordered dict"])
def test_metadata_that_would_run_something_run_nothing(folder: Path, tmp_path: Path, way: str) -> None:
    proof = tmp_path / "ran"
    hostile = {
        "os.system": pickle.dumps(_Runs(os.system, f"touch {proof}")),
        "eval": pickle.dumps(_Runs(eval, f"open({str(proof)!r}, 'w')")),
        "through a dot": dotted("torch.distributed.checkpoint.metadata", "os.system", f"touch {proof}"),
        "a class beside": pickle.dumps(_Runs(FileSystemWriter, str(proof))),
        "an ordered dict": pickle.dumps(_Runs(OrderedDict, [("a", 1)])),
    }
    (folder / ".metadata").write_bytes(hostile[way])

    with pytest.raises(CheckpointDamaged, match=r"its \.metadata cannot be read"):
        tensor_shapes(folder)

    assert not proof.exists()


def test_the_dotted_pickle_would_run_in_an_unpickler_that_asks_nothing(tmp_path: Path) -> None:
    """So the test above refuses something real."""
    proof = tmp_path / "ran"

    pickle.loads(dotted("torch.distributed.checkpoint.metadata", "os.system", f"touch {proof}"))

    assert proof.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", pickle.dumps(["a list"]), pickle.dumps(Metadata({}))[:-9]], ids=len
)
def test_invalid_metadata_are_reported(folder: Path, content: bytes) -> None:
    (folder / ".metadata").write_bytes(content)

    with pytest.raises(CheckpointDamaged, match=r"its \.metadata"):
        tensor_shapes(folder)


def test_bytes_that_pytorch_would_load_with_any_pickle_in_them_are_refused(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({"a": BytesStorageMetadata()})))

    with pytest.raises(CheckpointDamaged, match="BytesStorageMetadata, which no such file needs"):
        load_tensors(folder, {"a": torch.zeros(3, 4)}, SingleRank())


def test_a_missing_or_truncated_shard_is_reported(folder: Path) -> None:
    shard = next(folder.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:100])

    with pytest.raises(CheckpointDamaged, match="its tensors cannot be read"):
        load_tensors(folder, {"a": torch.zeros(3, 4)}, SingleRank())

    shard.unlink()
    with pytest.raises(CheckpointDamaged, match="its tensors cannot be read"):
        load_tensors(folder, {"a": torch.zeros(3, 4)}, SingleRank())
