"""Training state in a folder, with a shard from each process.

```
checkpoint_<step>/
  .metadata          locations of the tensors (torch.distributed.checkpoint)
  __<rank>_0.distcp  tensors written by this rank
  rank_<rank>.pt     state of this rank: its random states
  state.pt           state shared by all ranks
```

Tensors go through `torch.distributed.checkpoint`, so any number of processes can read what any number wrote. The
rest is written by `torch.save` and read with `weights_only=True`, and the metadata are read by an unpickler that
accepts only the classes of such metadata: a checkpoint is data, never code.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from crashproof.checkpoints.digest import Digest, digest_of_files
from crashproof.disk.atomic import open_digested_file, partial_name, publish_folder
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.errors import CheckpointDamaged, CrashproofError, StorageError, StorageUnwritable
from crashproof.pytorch.checkpoint_file import load_checkpoint, write_state
from crashproof.pytorch.coordination.acting_together import act_together
from crashproof.pytorch.ranks import DistributedRanks, Ranks
from crashproof.records.checkpoints import FileDigest

__all__ = ["load_rank_state", "load_shared_state", "load_tensors", "save_shards", "tensor_shapes"]

_SHARED_FILE = "state.pt"
_METADATA = "torch.distributed.checkpoint.metadata"
_METADATA_NAMES = frozenset(
    {
        *((_METADATA, name) for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex")),
        *((_METADATA, name) for name in ("StorageMeta", "TensorProperties", "TensorStorageMetadata")),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(("pathlib", name) for name in ("Path", "PosixPath", "PurePosixPath")),
        # Its module in Python 3.13 and later.
        ("pathlib._local", "PosixPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    }
)
"""All classes of such metadata. None has a dot in its name: through it a pickle could reach whatever the module has
imported. `BytesStorageMetadata` is left out: PyTorch unpickles what it names without restriction."""


def save_shards(
    path: Path,
    tensors: dict[str, Tensor],
    rank_state: Mapping[str, object],
    shared_state: Mapping[str, object],
    ranks: DistributedRanks,
    *,
    make_way: Callable[[], object] | None = None,
    disk: Disk = REAL_DISK,
) -> Digest:
    """Write a checkpoint folder atomically, together with all other ranks.

    Every rank writes and syncs its shards under the folder's temporary name and computes their digests. The main rank
    gives the folder its final name once all have reported success. All ranks call this, and all return or raise.

    Args:
        path: Folder on a file system that all ranks share.
        tensors: Tensors on the CPU by name; plain ones are equal on all ranks, a `DTensor` has a part on each.
        rank_state: Content of `rank_<rank>.pt`.
        shared_state: Content of `state.pt`.
        ranks: The ranks, not used by another thread at the same time.
        make_way: Moves an older folder of this name away; the main rank calls it once the new one is complete.
        disk: Target of all writes.

    Returns:
        The digest of each file, for the manifest.

    Raises:
        DiskFull, StorageUnwritable: On any rank; an existing folder of this name is unchanged, and what was written
            of the new one is removed.
        RankLost: Another rank died, or did not take part within the limit; likewise.
    """
    partial = partial_name(path)
    files = _DigestedFiles(disk)

    def write() -> dict[str, FileDigest]:
        files.write_state(partial / f"rank_{ranks.rank}.pt", rank_state)
        if ranks.is_main:
            files.write_state(partial / _SHARED_FILE, shared_state)
        return files.digests

    def publish() -> None:
        _require_complete(partial, digests)
        if make_way is not None:
            make_way()
        publish_folder(partial, path, disk=disk)

    with _removed_on_failure(partial, ranks, disk):
        act_together(ranks, f"preparing {partial.name}", lambda: _make_empty(partial, disk), only_main=True)
        act_together(ranks, f"looking for {partial.name}", lambda: _require_shared(partial, ranks))
        with ranks.collective(f"writing {path.name}"):
            failure = _write_tensors(partial, tensors, files, ranks)
        found = act_together(ranks, f"finishing {path.name}", write, failure=failure)
        digests = {name: digest for each in found for name, digest in each.items()}
        # Every rank has reported success: only now the folder gets its final name.
        act_together(ranks, f"publishing {path.name}", publish, only_main=True)
    return digest_of_files(digests)


def load_tensors(path: Path, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Fill tensors with those of a folder, whatever number of ranks wrote it.

    Raises:
        CheckpointDamaged: It cannot be read.
        RankLost: Another rank died, or did not take part within the limit.
    """
    # Checked first, because the reader wraps the errors of its own call.
    tensor_shapes(path)
    try:
        with ranks.collective(f"loading {path.name}"), warnings.catch_warnings():
            # A single process reads it on purpose.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            group = ranks.group if isinstance(ranks, DistributedRanks) else None
            load(tensors, storage_reader=_DataReader(path), process_group=group, no_dist=group is None)
    except CrashproofError:
        raise
    except (Exception, CheckpointException) as error:  # Altered bytes can raise almost anything.
        # The message may be a traceback; its last line is the error.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise CheckpointDamaged(path, reason=f"its tensors cannot be read ({reason})") from error


def load_shared_state(path: Path) -> dict[str, Any]:
    """Load the state shared by all ranks.

    Raises:
        CheckpointDamaged: It cannot be read.
    """
    return load_checkpoint(path / _SHARED_FILE)


def load_rank_state(path: Path, rank: int) -> dict[str, Any] | None:
    """Load the state of one rank, or None if fewer ranks wrote the folder.

    Raises:
        CheckpointDamaged: It cannot be read.
    """
    file = path / f"rank_{rank}.pt"
    return load_checkpoint(file) if file.exists() else None


def tensor_shapes(path: Path) -> dict[str, torch.Size]:
    """Read the names and full shapes of the tensors in a folder.

    Raises:
        CheckpointDamaged: Its metadata cannot be read.
    """
    metadata = _DataReader(path).read_metadata()
    return {name: each.size for name, each in metadata.state_dict_metadata.items() if hasattr(each, "size")}


def _make_empty(partial: Path, disk: Disk) -> None:
    with storage_errors(partial):
        if partial.exists():
            disk.remove_tree(partial)
        disk.make_folders(partial)


def _require_shared(partial: Path, ranks: DistributedRanks) -> None:
    if not partial.is_dir():
        raise StorageUnwritable(
            partial, reason=f"rank {ranks.rank} cannot see it; all hosts must share the output folder"
        )


def _require_complete(partial: Path, digests: Mapping[str, FileDigest]) -> None:
    """Refuse a folder that lacks what another rank says it has written: that rank has written somewhere else."""
    for name, digest in digests.items():
        found = (partial / name).stat().st_size if (partial / name).is_file() else None
        if found != digest.num_bytes:
            has = "does not have it" if found is None else f"has {found:,} bytes of it"
            raise StorageUnwritable(
                partial,
                reason=f"a rank has written {name}, and the folder {has}; all hosts must share the output folder",
            )


@contextmanager
def _removed_on_failure(partial: Path, ranks: DistributedRanks, disk: Disk) -> Iterator[None]:
    """Remove what a failed save has written: the next one may need the space."""
    try:
        yield
    except StorageError:
        # Every rank has reported by now, so nobody writes there any more. What stays is swept by the next save.
        with suppress(OSError):
            if ranks.is_main and partial.exists():
                disk.remove_tree(partial)
        raise


def _write_tensors(
    partial: Path, tensors: dict[str, Tensor], files: _DigestedFiles, ranks: DistributedRanks
) -> Exception | None:
    """Write this rank's shards and the common metadata, and return the failure of this rank."""
    writer = FileSystemWriter(partial, sync_files=False)
    writer.fs = files
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
            save(tensors, storage_writer=writer, process_group=ranks.group)
    except CheckpointException as error:
        own = error.failures.get(ranks.rank)
        # Another rank's failure is reported by that rank.
        return None if own is None else files.failure or OSError(str(own[0]))
    return None


class _DigestedFiles(FileSystem):
    """The file system of `torch.distributed.checkpoint`, with all writes through `disk`."""

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
            # Failures are sent to the other ranks, and only plain errors can be pickled.
            self.failure = error
            raise OSError(str(error)) from error
        # The metadata are written under a temporary name.
        name = Path(path).name.removesuffix(".tmp")
        self.digests[name] = FileDigest(num_bytes=file.num_bytes, digest=file.digest())

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self._disk.replace(Path(path), Path(new_path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._disk.remove_file(Path(path))

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self._disk.make_folder(Path(path))

    def write_state(self, path: Path, content: Mapping[str, object]) -> None:
        """Write a file with `torch.save`."""
        with self.create_stream(path, "wb") as file:
            write_state(dict(content), file)


class _DataReader(FileSystemReader):
    """A reader with a restricted unpickler for the metadata."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except Exception as error:  # An altered pickle can raise almost anything.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointDamaged(path.parent, reason=f"its .metadata cannot be read ({reason})") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointDamaged(path.parent, reason=f"its .metadata contains a {type(metadata).__name__}")
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles only the classes of such metadata."""

    def find_class(self, module: str, name: str) -> object:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in _METADATA_NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which no such file needs")
