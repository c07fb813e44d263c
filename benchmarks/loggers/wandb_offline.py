"""An offline run of W&B."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

from benchmarks.loggers.step_logger import RING, ring_of_scalars

__all__ = ["WandbOffline"]

_BLOCK_BYTES, _HEAD_BYTES = 32_768, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


class WandbOffline:
    """`run.log`: a process beside this one writes the file."""

    def __init__(self, folder: Path) -> None:
        self._ring = ring_of_scalars()
        self._run = wandb.init(
            mode="offline", project="bench", dir=str(folder), settings=wandb.Settings(silent=True, console="off")
        )

    def prepare(self, step: int) -> Any:
        """See `StepLogger`."""
        return self._ring[step % RING]

    def log(self, step: int, prepared: Any) -> None:
        """See `StepLogger`."""
        self._run.log(prepared, step=step)

    def close(self) -> None:
        """See `StepLogger`."""
        self._run.finish()

    @staticmethod
    def steps_found(folder: Path) -> Iterator[int]:
        """See `StepLogger`."""
        for path in folder.rglob("*.wandb"):
            for record in _records(path.read_bytes()):
                if record.WhichOneof("record_type") == "history":
                    yield record.history.step.num


def _records(content: bytes) -> Iterator[Any]:
    """Yield the messages of a file: a log as LevelDB writes it, whose end may be missing."""
    parts: list[bytes] = []
    place = _HEAD_BYTES
    while place + _HEAD_BYTES <= len(content):
        if _BLOCK_BYTES - place % _BLOCK_BYTES < _HEAD_BYTES:
            place += _BLOCK_BYTES - place % _BLOCK_BYTES
            continue
        num_bytes, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part = content[place + _HEAD_BYTES : place + _HEAD_BYTES + num_bytes]
        if len(part) < num_bytes or not _WHOLE <= kind <= _LAST:
            return
        parts = [part] if kind in (_WHOLE, _FIRST) else [*parts, part]
        place += _HEAD_BYTES + num_bytes
        if kind in (_WHOLE, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            yield record
