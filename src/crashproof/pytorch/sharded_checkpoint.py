"""Training state in a folder, a shard from each process.

```
checkpoint_<step>/
  .metadata          which tensor lies where (torch.distributed.checkpoint)
  __<rank>_0.distcp  the tensors that this rank wrote
  rank_<rank>.pt     what only this rank knows: its random states
  state.pt           what all ranks know
```

Tensors go through `torch.distributed.checkpoint`, so any number of processes can read what any number wrote. All
else is `torch.save` read with `weights_only=True`, and the metadata are read by an unpickler that knows the classes
of such metadata and nothing else: a checkpoint is data, never code.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from crashproof.checkpoints.digest import Digest, digest_of_files
from crashproof.disk.atomic import open_digested_file, partial_name, publish_folder
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.errors import CheckpointDamaged, CrashproofError, DiskFull, StorageError, StorageUnwritable
from crashproof.pytorch.checkpoint_file import load_checkpoint, write_state
from crashproof.pytorch.ranks import ManyRanks
from crashproof.records.checkpoints import FileDigest

__all__ = ["load_rank_state", "load_shared_state", "load_tensors", "save_shards"]

_SHARED_FILE = "state.pt"
_METADATA = "torch.distributed.checkpoint.metadata"
_METADATA_NAMES = frozenset(
    {
        *((_METADATA, name) for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex")),
        *((_METADATA, name) for name in ("StorageMeta", "TensorProperties", "TensorStorageMetadata")),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(("pathlib", name) for name in ("Path", "PosixPath", "PurePosixPath")),
        # Where Python 3.13 and later keep it.
        ("pathlib._local", "PosixPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    }
)
"""All that such metadata consist of. No name with a dot is among them: a pickle would reach through it into whatever
the module has imported. Nor is `BytesStorageMetadata`: PyTorch loads what that names with any pickle in it."""


def save_shards(
    path: Path,
    tensors: dict[str, Any],
    rank_state: Mapping[str, Any],
    shared_state: Mapping[str, Any],
    ranks: ManyRanks,
    *,
    disk: Disk = REAL_DISK,
) -> Digest:
    """Write a checkpoint folder with all other ranks: whole, or not at all.

    Every rank writes and syncs its shards under the folder's temporary name, digesting them on their way. The main
    rank gives the folder its final name once each has reported success, and tells the others. All ranks call it, and
    all return or raise.

    Args:
        path: On a file system that all ranks share.
        tensors: By name; plain ones are the same on all ranks, of a `DTensor` each has its part. On the CPU.
        rank_state: What `rank_<rank>.pt` will hold.
        shared_state: What `state.pt` will hold.
        ranks: Used by no other thread meanwhile.
        disk: Where bytes go.

    Returns:
        The digest of each file, for the manifest.

    Raises:
        DiskFull, StorageUnwritable: on any rank; a folder that had this name is as it was.
        RankLost: another rank died, or did not come within the limit; the same.
    """
    partial = partial_name(path)
    _together(ranks, f"making room for {path.name}", lambda: _make_empty(partial, disk), only_main=True)
    _together(ranks, f"looking for {partial.name}", lambda: _require_shared(partial, ranks))
    files = _DigestedFiles(disk)

    def write() -> dict[str, FileDigest]:
        files.write_state(partial / f"rank_{ranks.rank}.pt", rank_state)
        if ranks.is_main:
            files.write_state(partial / _SHARED_FILE, shared_state)
        return files.digests

    with ranks.meeting(f"writing {path.name}"):
        failure = _written_tensors(partial, tensors, files, ranks)
    found = _together(ranks, f"finishing {path.name}", write, failure=failure)
    digests = {name: digest for each in found for name, digest in each.items()}
    # Every rank has reported success: only now does the folder get its name.
    _together(ranks, f"publishing {path.name}", lambda: publish_folder(partial, path, disk=disk), only_main=True)
    return digest_of_files(digests)


def load_tensors(path: Path, tensors: dict[str, Any], ranks: Any) -> None:
    """Fill tensors with those of a folder, whatever number of ranks wrote it.

    Raises:
        CheckpointDamaged: it cannot be read.
    """
    # Asked by itself first: the reader wraps what its own reading of them raises.
    names_in(path)
    try:
        with warnings.catch_warnings():
            # Read by one process alone is what is meant.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            group = ranks.group if isinstance(ranks, ManyRanks) else None
            load(tensors, storage_reader=_DataReader(path), process_group=group, no_dist=group is None)
    except CrashproofError:
        raise
    except (Exception, CheckpointException) as error:  # What a reader makes of altered bytes can be nearly anything.
        # The last line of a traceback, or the only one.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise CheckpointDamaged(path, reason=f"its tensors cannot be read ({reason})") from error


def load_shared_state(path: Path) -> dict[str, Any]:
    """What all ranks know.

    Raises:
        CheckpointDamaged: it cannot be read.
    """
    return load_checkpoint(path / _SHARED_FILE)


def load_rank_state(path: Path, rank: int) -> dict[str, Any] | None:
    """What one rank knew, or None where fewer ranks wrote the folder.

    Raises:
        CheckpointDamaged: it cannot be read.
    """
    file = path / f"rank_{rank}.pt"
    return load_checkpoint(file) if file.exists() else None


def names_in(path: Path) -> dict[str, torch.Size]:
    """The tensors of a folder and their whole shapes.

    Raises:
        CheckpointDamaged: its metadata cannot be read.
    """
    metadata = _DataReader(path).read_metadata()
    return {name: each.size for name, each in metadata.state_dict_metadata.items() if hasattr(each, "size")}


def _make_empty(partial: Path, disk: Disk) -> None:
    with storage_errors(partial):
        if partial.exists():
            disk.remove_tree(partial)
        disk.make_folders(partial)


def _require_shared(partial: Path, ranks: ManyRanks) -> None:
    if not partial.is_dir():
        raise StorageUnwritable(
            partial, reason=f"rank {ranks.rank} does not see it; all hosts must share the output folder"
        )


def _written_tensors(
    partial: Path, tensors: dict[str, Any], files: _DigestedFiles, ranks: ManyRanks
) -> Exception | None:
    """Write this rank's shards and the common metadata; a failure of any rank is known to all."""
    writer = FileSystemWriter(partial, sync_files=False)
    writer.fs = files
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
            save(tensors, storage_writer=writer, process_group=ranks.group)
    except CheckpointException as error:
        own = error.failures.get(ranks.rank)
        # Another rank's failure is told by that rank.
        return None if own is None else files.failure or OSError(str(own[0]))
    return None


def _together(ranks: ManyRanks, what: str, act: Any, *, only_main: bool = False, failure: Any = None) -> list[Any]:
    """Let each rank (or the main one) act; all learn how it ended, and a failure of one is raised on all."""
    result = None
    if failure is None and (ranks.is_main or not only_main):
        try:
            result = act()
        except (StorageError, OSError) as error:
            failure = error
    told = ranks.from_all((result, _as_told(failure)), what)
    failures = [(rank, each) for rank, (_, each) in enumerate(told) if each is not None]
    if failures:
        rank, (is_full, path, reason) = failures[0]
        if is_full:
            raise DiskFull(path)
        raise StorageUnwritable(path, reason=f"rank {rank}: {reason}")
    return [result for result, _ in told]


def _as_told(failure: Exception | None) -> tuple[bool, Path, str] | None:
    """A failure as other processes can be told of it."""
    if failure is None:
        return None
    path = getattr(failure, "path", None) or Path("the checkpoint")
    return isinstance(failure, DiskFull), Path(path), str(getattr(failure, "message", failure)).rstrip(".")


class _DigestedFiles(FileSystem):
    """What `torch.distributed.checkpoint` writes, through the one module that writes."""

    def __init__(self, disk: Disk) -> None:
        self.digests: dict[str, FileDigest] = {}
        self.failure: StorageError | None = None
        self._disk = disk

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        if mode == "rb":
            with Path(path).open("rb") as stream:
                yield stream
            return
        try:
            with open_digested_file(Path(path), disk=self._disk) as file:
                yield file
        except StorageError as error:
            # Failures of one rank travel to the others, and only plain errors can.
            self.failure = error
            raise OSError(str(error)) from error
        # The metadata's temporary name is not its last one.
        name = Path(path).name.removesuffix(".tmp")
        self.digests[name] = FileDigest(num_bytes=file.num_bytes, sha256=file.sha256())

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self._disk.replace(Path(path), Path(new_path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._disk.remove_file(Path(path))

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self._disk.make_folder(Path(path))

    def write_state(self, path: Path, content: Mapping[str, Any]) -> None:
        """A file of `torch.save`."""
        with self.create_stream(path, "wb") as file:
            write_state(dict(content), file)


class _DataReader(FileSystemReader):
    """Reads metadata as data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except Exception as error:  # An altered pickle can raise nearly anything.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointDamaged(path.parent, reason=f"its .metadata cannot be read ({reason})") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointDamaged(path.parent, reason=f"its .metadata holds a {type(metadata).__name__}")
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Makes nothing but the classes that such metadata consist of."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in _METADATA_NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")
