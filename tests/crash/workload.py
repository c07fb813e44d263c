"""A small run, and the ledger of what was acknowledged.

The workload does everything that reaches the disk. Each call that returns is noted in the ledger; after a crash,
`broken_promises` compares what is left on the disk with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crashproof import ProgressTracker, RunReader, TrackerSettings, write_atomically
from crashproof.checkpoints.verify import problem_with
from crashproof.disk.atomic import write_folder_atomically
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NoUsableCheckpoint
from crashproof.records.lines.checksummed_line import is_intact
from crashproof.rules.retention import KeepLatest
from crashproof.testing import FakeClock, FaultyDisk

CONFIG = {"train": {"lr": 0.1, "batch_size": 2}}
OTHER_CONFIG = {"train": {"lr": 0.2, "batch_size": 2}}
SETTINGS = TrackerSettings(has_heartbeat=False, large_checkpoint_bytes=3000, keep=KeepLatest(1))
TOTAL_STEPS = 100
SHARDED = 0
"""Instead of a size: the checkpoint is a folder."""


@dataclass
class Ledger:
    """What was acknowledged, by promise."""

    updates: list[int] = field(default_factory=list)
    """Steps whose update returned, in the current session (promise 1)."""
    synced_updates: list[int] = field(default_factory=list)
    """Of these, the ones that a save, a checkpoint or a close came after (promise 2)."""
    checkpoints: dict[int, bytes] = field(default_factory=dict)
    """What was in each acknowledged checkpoint of the current session (promises 3, 4, 8)."""
    contents: dict[int, bytes] = field(default_factory=dict)
    """What was or would have been in each checkpoint that was begun."""
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Acknowledged answers, of all sessions (promise 5)."""
    archived: list[tuple[str, list[int]]] = field(default_factory=list)
    """Archived sessions, with their synced steps (promise 7)."""


class Workload:
    """Two attempts of one session, then a session of another config."""

    def __init__(self, output_dir: Path, disk: Disk, ledger: Ledger) -> None:
        self.output_dir = output_dir
        self.disk = disk
        self.ledger = ledger
        self.clock = FakeClock()

    def run(self) -> None:
        """Run all of it; exceptions reach the caller."""
        tracker = self._open(CONFIG)
        self._train(tracker, range(1, 7), checkpoint_at={3: 500, 6: 4000})
        tracker.record_api_response("answer-1", {"text": "one"}, 0.25)
        self.ledger.answers["answer-1"] = {"text": "one"}
        tracker.save()
        self._synced()
        self._train(tracker, range(7, 9), checkpoint_at={})
        tracker.close()
        self._synced()

        tracker = self._open(CONFIG)
        tracker.get_recovery_checkpoint()
        self._train(tracker, range(7, 12), checkpoint_at={10: 700})
        tracker.record_pause(1.0)
        tracker.record_api_response("answer-2", {"text": "two"}, 0.5)
        self.ledger.answers["answer-2"] = {"text": "two"}
        tracker.record_connection_failure(1, "timed out")
        tracker.close()
        self._synced()

        self.ledger.archived.append((tracker.session.session_id, list(self.ledger.synced_updates)))
        self.ledger.updates, self.ledger.synced_updates = [], []
        self.ledger.checkpoints = {}
        tracker = self._open(OTHER_CONFIG)
        self._train(tracker, range(1, 4), checkpoint_at={1: SHARDED, 2: 300, 3: 310})
        tracker.close()
        self._synced()

    def _open(self, config: dict[str, Any]) -> ProgressTracker:
        return ProgressTracker(
            self.output_dir / "progress",
            config,
            TOTAL_STEPS,
            settings=SETTINGS,
            clock=self.clock,
            disk=self.disk,
        )

    def _train(self, tracker: ProgressTracker, steps: range, checkpoint_at: dict[int, int]) -> None:
        for step in steps:
            self.clock.advance(1.0)
            update(tracker, step)
            # A recomputed step supersedes those of earlier attempts from there on.
            self.ledger.updates = [done for done in self.ledger.updates if done < step] + [step]
            self.ledger.synced_updates = [done for done in self.ledger.synced_updates if done < step]
            if step in checkpoint_at:
                self._save_checkpoint(tracker, step, checkpoint_at[step])

    def _save_checkpoint(self, tracker: ProgressTracker, step: int, num_bytes: int) -> None:
        content = f"state at {step} of {tracker.session.session_id} ".encode().ljust(num_bytes, b".")
        self.ledger.contents[step] = content
        path = self.output_dir / f"checkpoint_{step}.pt"
        if num_bytes == SHARDED:
            with write_folder_atomically(path, disk=self.disk) as folder:
                (folder / "shard").write_bytes(content)
            tracker.record_checkpoint(step, path, step * 2)
        elif num_bytes > SETTINGS.large_checkpoint_bytes:
            # As other code would write it: no sync at all.
            file = self.disk.open_anew(path)
            self.disk.write(file, content)
            self.disk.close(file)
            tracker.record_checkpoint(step, path, step * 2)
            tracker.get_recovery_checkpoint()
        else:
            written = write_atomically(path, lambda file: file.write(content), disk=self.disk)
            tracker.record_checkpoint(step, path, step * 2, written=written)
        self.ledger.checkpoints[step] = content
        self._synced()

    def _synced(self) -> None:
        self.ledger.synced_updates = list(self.ledger.updates)


def number_of_operations(folder: Path) -> int:
    """How many operations on the disk the whole workload takes."""
    run = folder / "count" / "run"
    run.mkdir(parents=True)
    disk = FaultyDisk(run, folder / "count" / "scratch")
    Workload(run, disk, Ledger()).run()
    return disk.num_operations


def update(tracker: ProgressTracker, step: int) -> None:
    """One step's report; the same numbers for the same step, always."""
    tracker.update_metrics(
        step=step,
        loss=5.0 / step,
        loss_components={"kd": 2.0 / step, "ce": 3.0 / step},
        learning_rate=0.1,
        samples_processed=step * 2,
        tokens_processed=step * 64,
    )


def broken_promises(output_dir: Path, ledger: Ledger, *, process_death_only: bool) -> list[str]:
    """Acknowledged data that the disk does not hold; opens the run as the next start would."""
    folder = RunFolder.under(output_dir)
    broken = [
        f"promise 6: {path.name} is torn"
        for path in (folder.session, folder.summary, folder.manifest)
        if path.exists() and not is_intact(path.read_bytes())
    ]
    is_other = bool(ledger.archived)
    tracker = ProgressTracker(folder.progress, OTHER_CONFIG if is_other else CONFIG, TOTAL_STEPS, settings=SETTINGS)
    try:
        broken += _broken_updates(tracker, ledger, process_death_only)
        broken += _broken_checkpoints(tracker, ledger)
        broken += _broken_removals(tracker)
        broken += [
            f"promise 5: {key} is lost"
            for key, answer in ledger.answers.items()
            if tracker.get_api_response(key) != answer
        ]
    finally:
        tracker.close()
    broken += _broken_archives(folder, ledger)
    broken += [f"after the start: {problem}" for problem in RunReader(folder).problems()]
    for path in (folder.session, folder.summary, folder.manifest):
        json.loads(path.read_text())
    return broken


def _broken_updates(tracker: ProgressTracker, ledger: Ledger, process_death_only: bool) -> list[str]:
    promised = ledger.updates if process_death_only else ledger.synced_updates
    history = [line.step for line in RunReader(RunFolder(tracker.session_file.parent)).history()]
    lost = sorted(set(promised) - set(history))
    broken = [f"promises 1, 2: steps {lost} are lost"] if lost else []
    if history != sorted(set(history)):
        broken.append(f"canonical history {history} is not each step once, in order")
    return broken


def _broken_checkpoints(tracker: ProgressTracker, ledger: Ledger) -> list[str]:
    newest = max(ledger.checkpoints, default=0)
    try:
        offered = tracker.get_recovery_checkpoint()
    except NoUsableCheckpoint as error:
        return [f"promise 3: {error}"] if newest else []
    if offered is None:
        return [f"promise 8: a silent start from zero, though {newest} was acknowledged"] if newest else []
    broken = []
    if offered.checkpoint_step < newest:
        broken.append(f"promise 3: {offered.checkpoint_step} is offered, though {newest} was acknowledged")
    path = Path(offered.checkpoint_path)
    if (path / "shard" if path.is_dir() else path).read_bytes() != ledger.contents[offered.checkpoint_step]:
        broken.append(f"promise 4: checkpoint {offered.checkpoint_step} is offered and is not intact")
    return broken


def _broken_removals(tracker: ProgressTracker) -> list[str]:
    session, folder = tracker.session, RunFolder(tracker.session_file.parent)
    broken = []
    for checkpoint in [*session.checkpoints.values(), *session.checkpoints_beside]:
        problem = problem_with(checkpoint, folder, trusts_unverified=True)
        if problem is not None:
            broken.append(f"promise 7: {checkpoint.checkpoint_path} is named, and {problem}")
    broken += [
        f"promise 7: {each.checkpoint_path} was removed, and is still there"
        for each in session.checkpoints_removing
        if (folder.root / each.checkpoint_path).exists()
    ]
    return broken + [f"after the start: {path.name} is left" for path in folder.root.glob(".*partial")]


def _broken_archives(folder: RunFolder, ledger: Ledger) -> list[str]:
    broken = []
    for session_id, steps in ledger.archived:
        archive = RunReader(RunFolder(folder.archive_of(session_id)))
        lost = sorted(set(steps) - {line.step for line in archive.history()})
        if lost:
            broken.append(f"promise 7: steps {lost} of the archived session are lost")
    return broken
