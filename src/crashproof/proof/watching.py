"""Watch a run that is to be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from crashproof.records.proof.witness import WitnessLine

__all__ = ["SaveWatch", "WitnessTail"]

_DECODER = msgspec.json.Decoder(WitnessLine)
_OWN_FOLDER = "progress"


class WitnessTail:
    """Reads the lines that a start's tracker writes, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.lines: list[WitnessLine] = []
        """All so far."""

    def read_new(self) -> list[WitnessLine]:
        """The lines that are new; one that is not finished waits for the next call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        new = [_DECODER.decode(line) for line in complete.splitlines()]
        self.lines += new
        return new


class SaveWatch:
    """Notices that something is being saved: files beside the run's own records appear, or change."""

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir
        self._before: dict[str, tuple[int, int]] = {}

    def begin(self) -> None:
        """Note which files there are."""
        self._before = dict(self._files())

    def has_begun(self) -> bool:
        """Whether any file has appeared or changed since then."""
        return dict(self._files()).items() - self._before.items() != set()

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for folder, names, files in os.walk(self._output_dir):
            if _OWN_FOLDER in names:
                names.remove(_OWN_FOLDER)
            for name in files:
                path = Path(folder, name)
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                yield str(path), (stat.st_size, stat.st_mtime_ns)
