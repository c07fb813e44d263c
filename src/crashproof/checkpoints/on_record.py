"""Trust a verification on record.

Reading a checkpoint of gigabytes takes minutes of a disk's time, and a monitor looks every minute. So whoever reads
one and finds it intact notes what the file system says of its files; while that stays the same, nobody has written to
them. It shows no bit that the disk itself has lost: a restart reads every byte all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import UNSET, UnsetType

from crashproof.checkpoints.digest import is_litter, stats_of
from crashproof.records.checkpoints import CheckpointMetadata, FileDigest, FileStat

__all__ = ["is_as_verified", "recorded_names", "settled", "stats_as_written"]

_TICK_NS, _COARSE_TICK_NS = 20_000_000, 2_000_000_000
"""For how long a file may be written and keep its time: by a kernel's clock, and where times are whole seconds."""
_SECOND_NS = 1_000_000_000


def recorded_names(files: Mapping[str, FileDigest] | None) -> list[str] | None:
    """The files of a folder that were digested, without litter; None for a single file."""
    return None if files is None else [name for name in files if not is_litter(name)]


def stats_as_written(path: Path, names: Iterable[str] | None, *, now: float) -> dict[str, FileStat] | UnsetType:
    """What the file system says of files that this process has written, and that were named just now.

    Args:
        path: A file, or a folder.
        names: Those of a folder; None for a single file.
        now: Seconds since 1970.
    """
    try:
        return settled(stats_of(path, names), now=now, tick_ns=0)
    except OSError:
        return UNSET


def settled(stats: dict[str, FileStat], *, now: float, tick_ns: int = _TICK_NS) -> dict[str, FileStat] | UnsetType:
    """What was seen of files whose bytes are known; absent if another program could still change them unseen.

    A write within a tick of the clock after the last one leaves a file's time as it is.
    """
    is_settled = stats and all(_has_passed(each.mtime_ns, int(now * _SECOND_NS), tick_ns) for each in stats.values())
    return stats if is_settled else UNSET


def is_as_verified(checkpoint: CheckpointMetadata, path: Path) -> bool:
    """Whether the files at a path have the size, time and inode that they had when they were found intact."""
    if not checkpoint.verified or not checkpoint.is_verifiable:
        return False
    try:
        return stats_of(path, None if "." in checkpoint.verified else checkpoint.verified) == checkpoint.verified
    except OSError:
        return False


def _has_passed(mtime_ns: int, now_ns: int, tick_ns: int) -> bool:
    return now_ns - mtime_ns >= _COARSE_TICK_NS if mtime_ns % _SECOND_NS == 0 else now_ns - mtime_ns >= tick_ns
