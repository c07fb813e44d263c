"""The least that keeps a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson

from benchmarks.loggers.step_logger import RING
from benchmarks.made_runs import past_line

__all__ = ["Floor"]


class Floor:
    """`orjson.dumps` and `os.write` of the fields of a metrics line, from a dict that is there already."""

    def __init__(self, folder: Path) -> None:
        self._ring: list[dict[str, Any]] = [msgspec.to_builtins(past_line(step)) for step in range(1, RING + 1)]
        self._file = os.open(folder / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def prepare(self, step: int) -> Any:
        """See `StepLogger`."""
        record = self._ring[step % RING]
        record["step"] = step
        return record

    def log(self, step: int, prepared: Any) -> None:
        """See `StepLogger`."""
        os.write(self._file, orjson.dumps(prepared, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """See `StepLogger`."""
        os.close(self._file)

    @staticmethod
    def steps_found(folder: Path) -> Iterator[int]:
        """See `StepLogger`."""
        with (folder / "floor.jsonl").open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)["step"]
