"""Gather what was seen of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

from crashproof.disk.run_folder import RunFolder
from crashproof.reading.run_reader import RunReader
from crashproof.records.events import CheckpointRecorded
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.proof.witness import RunOpened, Seen, WitnessLine
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.history import merged_updates
from crashproof.rules.proof.observations import Life, StepSeen

__all__ = ["SeenRun"]


class SeenRun:
    """A run that has ended, and what its starts have seen."""

    def __init__(self, progress: Path, starts: Sequence[Sequence[WitnessLine]]) -> None:
        self.folder = RunFolder(progress)
        self._reader = RunReader(self.folder)
        openings = _by_opening(line for lines in starts for line in lines)
        self._witnessed = [seen for seen in openings if seen]

    def lives(self) -> list[Life]:
        """The process lives that have computed a step, in order."""
        # Some attempts compute nothing, such as one that only takes up a checkpoint.
        witnessed = chain(self._witnessed, repeat([]))
        pairs = zip(self._updates().values(), witnessed, strict=False)
        return [Life(number=place, steps=tuple(_joined(*pair))) for place, pair in enumerate(pairs, 1)]

    def save_steps(self) -> list[int]:
        """The steps of its checkpoints, in the order of saving."""
        return [each.checkpoint.checkpoint_step for each in self._checkpoint_events()]

    def saved_before_lives(self) -> list[int]:
        """The newest step that was in a checkpoint when each life began; 0 if there was none."""
        saved = [(each.attempt, each.checkpoint.checkpoint_step) for each in self._checkpoint_events()]
        return [max((step for made, step in saved if made < attempt), default=0) for attempt in self._updates()]

    def checkpoints(self) -> dict[int, Path]:
        """Where its checkpoints lie that are still there, by step."""
        known = CheckpointCatalog(self._reader.session()).all()
        paths = {each.checkpoint_step: self.folder.find(each.checkpoint_path) for each in known}
        return {step: path for step, path in paths.items() if path.exists()}

    def checkpoint_digests(self) -> dict[str, str]:
        """The digests of its checkpoints, by path."""
        known = CheckpointCatalog(self._reader.session()).all()
        return {each.checkpoint_path: each.digest for each in known if each.digest is not None}

    def unreadable(self) -> dict[str, str]:
        """What was shown and cannot be compared: kinds by name."""
        lines = (each for seen in self._witnessed for each in seen)
        return {name: kind for each in lines for name, kind in each.unreadable.items()}

    def full_steps(self) -> set[int]:
        """The steps at which more than random states and batches was shown."""
        seen = (each for lines in self._witnessed for each in lines)
        return {each.step for each in seen if any(not name.startswith("random.") for name in each.values)}

    @property
    def was_archived(self) -> bool:
        """Whether a start has begun a new session, and archived the one before."""
        return self.folder.archive.is_dir() and any(self.folder.archive.iterdir())

    def _updates(self) -> dict[int, list[MetricsSnapshot]]:
        """The updates of each attempt that has some, in order."""
        updates: dict[int, list[MetricsSnapshot]] = {}
        for each in merged_updates(self._reader.all_updates()):
            updates.setdefault(each.attempt, []).append(each)
        return dict(sorted(updates.items()))

    def _checkpoint_events(self) -> Iterator[CheckpointRecorded]:
        return (each for each in self._reader.events() if isinstance(each, CheckpointRecorded))


def _joined(updates: Iterable[MetricsSnapshot], witnessed: Iterable[Seen]) -> Iterator[StepSeen]:
    """What a life reported of each step, and what it has shown of it."""
    by_step: dict[int, list[Seen]] = {}
    for each in witnessed:
        by_step.setdefault(each.step, []).append(each)
    for update in updates:
        seen = by_step.get(update.step, [])
        values = {name: value for each in seen for name, value in each.values.items()}
        batches = [each.samples for each in seen if each.samples is not None]
        yield StepSeen(
            step=update.step,
            values=_numbers_of(update) | values,
            samples=tuple(sample for batch in batches for sample in batch) if batches else None,
        )


def _by_opening(lines: Iterable[WitnessLine]) -> Iterator[list[Seen]]:
    """What was seen in each attempt of the run that was opened first."""
    progress: str | None = None
    current: list[Seen] | None = None
    for line in lines:
        if isinstance(line, RunOpened):
            progress = progress or line.progress
            if current is not None:
                yield current
            current = [] if line.progress == progress else None
        elif isinstance(line, Seen) and current is not None:
            current.append(line)
    if current is not None:
        yield current


def _numbers_of(update: MetricsSnapshot) -> dict[str, str]:
    """The numbers of an update, exactly."""
    return {
        "loss": repr(update.loss),
        "learning_rate": repr(update.learning_rate),
        "samples_processed": str(update.samples_processed),
        "tokens_processed": str(update.tokens_processed),
    } | {f"loss_components.{name}": repr(value) for name, value in update.loss_components.items()}
