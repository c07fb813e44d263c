"""Random walks over all that can happen to a run's checkpoints, held against a plain model.

The model is a list of records and a list of places where training went back. It knows nothing of catalogs: from these
two lists it says which checkpoint a restart must offer, and what it must never lose.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from crashproof import KeepBest, KeepEvery, KeepLatest, ProgressTracker, TrackerSettings, write_atomically
from crashproof.checkpoints.previous import previous_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NoUsableCheckpoint
from crashproof.reading.run_reader import RunReader
from crashproof.records.events import CheckpointRecorded, CheckpointSetAside
from crashproof.rules.retention import RetentionRule
from crashproof.testing import FakeClock, forget_open_runs
from crashproof.tracking.repair import repair_run

__all__ = ["Walk"]

RULES: list[RetentionRule | None] = [None, None, KeepLatest(1), KeepLatest(2), KeepEvery(4) | KeepLatest(1)]


@dataclass
class Record:
    """A checkpoint that was acknowledged."""

    path: str
    step: int
    content: str
    order: int
    """When, among all that happened."""
    is_before_update: bool
    way: str
    kept: Path
    """Where its bytes are kept while its file is overwritten."""
    is_quarantined: bool = False


@dataclass
class Model:
    """What was acknowledged, and where training went back."""

    records: list[Record] = field(default_factory=list)
    overwritten: list[Record] = field(default_factory=list)
    """Those whose path a newer record has taken."""
    went_back: list[tuple[int, int]] = field(default_factory=list)
    """When, and the step of the first update after it."""

    def is_abandoned(self, record: Record) -> bool:
        next_step = record.step + (0 if record.is_before_update else 1)
        return any(order > record.order and first < next_step for order, first in self.went_back)

    def expected(self, content_of: Callable[[Record], str | None]) -> Record | None:
        """The newest record that stands and whose bytes are there; abandoned ones after all others."""
        known = [*self.records, *self.overwritten]
        usable = [each for each in known if not each.is_quarantined and content_of(each) == each.content]
        return max(usable, key=lambda each: (not self.is_abandoned(each), each.step, each.order), default=None)


class Walk:
    """One run, driven by chance."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        self.model = Model()
        self.order = 0
        self.step = 0
        self.last_reported: int | None = None
        self.tracker: ProgressTracker | None = None
        self.rule: RetentionRule | None = None
        self.digests_at_once = True
        self.log: list[str] = []

    def run(self, num_operations: int) -> None:
        """Walk, then check what a last restart offers."""
        self.open()
        for _ in range(num_operations):
            operation, weight = zip(*self.operations(), strict=True)
            self.chance.choices(operation, weight)[0]()
            self.order += 1
        self.kill_and_resume()
        if self.tracker is not None:
            self.tracker.close()

    def operations(self) -> list[tuple[Callable[[], None], int]]:
        return [
            (self.train, 30),
            (self.save, 25),
            (self.save_without_recording, 5),
            (self.overwrite_before_the_digest, 4),
            (self.kill_and_resume, 10),
            (self.resume_from_an_older_one, 5),
            (self.go_back, 5),
            (self.damage, 6),
            (self.remove, 4),
            (self.add_a_file, 2),
            (self.repair, 2),
            (self.lose_a_snapshot, 2),
        ]

    # What training does.

    def train(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            self.step += 1
            self.report(self.step)

    def report(self, step: int) -> None:
        assert self.tracker is not None
        if self.last_reported is None or step < self.last_reported:
            self.model.went_back.append((self.order, step))
        self.last_reported = step
        self.clock.advance(1.0)
        self.tracker.update_metrics(step, 1.0 / (step + 1), {}, 0.1, step, step)
        self.order += 1

    def save(self) -> None:
        name, is_folder = self.name()
        self.save_as(name, is_folder=is_folder, way=self.chance.choice(["written", "adopted"]))

    def save_as(self, name: str, *, is_folder: bool = False, way: str) -> None:
        content = f"{self.step} {self.order} {self.chance.random()}"
        written = self.write(name, content, is_folder=is_folder, way=way)
        assert self.tracker is not None
        known = self.known_steps()
        self.model.overwritten += [
            each for each in self.model.records if each.path == name and not each.is_quarantined
        ]
        self.model.records = [each for each in self.model.records if each.path != name or each.is_quarantined]
        before = not any(step >= self.step for step in known)
        recorded = self.tracker.record_checkpoint(self.step, self.folder / name, self.step, written=written)
        self.model.records.append(
            Record(
                path=name,
                step=self.step,
                content=content,
                order=self.order,
                is_before_update=before,
                way=way if self.digests_at_once else "undigested",
                kept=previous_of(recorded, RunFolder.under(self.folder)),
            )
        )
        self.note_removals()
        self.log.append(f"save {name} at {self.step} ({way})")

    def save_without_recording(self) -> None:
        """A kill between the save and its record; by a rename, or in place."""
        name, is_folder = self.name()
        if is_folder and (self.folder / name).exists():
            return
        intact = [each for each in self.model.records if each.path == name and self.content_of(each) == each.content]
        way = self.chance.choice(["written", "adopted"])
        self.write(name, f"unrecorded {self.order}", is_folder=is_folder, way=way)
        if name == "last.pt":
            # One save can be lost: where a loop saves by a rename and then writes into the same file, and where the
            # bytes were never digested.
            may_lose = {("written", "adopted"), ("undigested", "written"), ("undigested", "adopted")}
            intact = [each for each in intact if (each.way, way) not in may_lose]
            lost = [each for each in intact if not each.is_quarantined and self.content_of(each) != each.content]
            assert not lost, self.why(f"the bytes of {lost} are gone, and no record has taken their place")
        self.log.append(f"killed behind the save of {name}")
        self.kill_and_resume()

    def overwrite_before_the_digest(self) -> None:
        """An end in a save, in place, while the digest of the save before is still to come: one save is lost."""
        if self.digests_at_once:
            return
        assert self.tracker is not None
        own = [each for each in [*self.model.records, *self.model.overwritten] if each.path == "last.pt"]
        # Where a loop saved by a rename and now writes into the same file, what is kept is that file.
        kept = [each for each in own if not each.is_quarantined and self.is_kept_apart(each)]
        gate = threading.Event()
        digests = self.tracker._checkpoints._digests
        digests._pool = digests._pool or ThreadPoolExecutor(1)
        digests._pool.submit(gate.wait)
        self.save_as("last.pt", way="adopted")
        lost = self.model.records[-1]
        # A file system's clock may tick only every few milliseconds.
        time.sleep(0.02)
        self.write("last.pt", lost.content[::-1], is_folder=False, way="adopted")
        gate.set()
        if self.chance.random() < 0.5:
            # An orderly end waits for the digest.
            self.tracker.close()
        self.kill_and_resume()
        left = [each for each in kept if self.content_of(each) == each.content]
        assert left or not kept, self.why(f"one save was lost, and {kept} with it")

    def write(self, name: str, content: str, *, is_folder: bool, way: str):
        path = self.folder / name
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            (path / "weights").write_text(content)
            (path / "config").write_text("c")
            return None
        path.parent.mkdir(exist_ok=True)
        if way == "written":
            return write_atomically(path, lambda file: file.write(content.encode()))
        path.write_text(content)
        return None

    def name(self) -> tuple[str, bool]:
        name = self.chance.choice(["ck", "ck", "best", "last.pt", "last.pt", "deep", "folder"])
        if name == "last.pt":
            return name, False
        if name == "folder":
            return f"folder_{self.step}", True
        return (f"sub/{name}_{self.step}.pt" if name == "deep" else f"{name}_{self.step}.pt"), False

    def go_back(self) -> None:
        """A rollback inside an attempt: reload an older checkpoint and go on from there."""
        older = [each for each in self.model.records if self.content_of(each) == each.content]
        if older:
            self.step = self.chance.choice(older).step
            self.log.append(f"went back to {self.step}")
            self.train()

    # What happens to it.

    def damage(self) -> None:
        if not self.model.records:
            return
        record = self.chance.choice(self.model.records)
        path = self.folder / record.path
        file = path / "weights" if path.is_dir() else path
        if not file.exists():
            return
        # Without a digest, other bytes of the same size are noticed only by those who can have a verified one.
        how = self.chance.choice(
            ["truncate", "delete"] if record.way == "undigested" else ["flip", "truncate", "delete"]
        )
        # By a rename: the bytes kept of an overwritten file are another file's then, as on a real disk.
        if how == "flip":
            content = bytearray(file.read_bytes() or b"x")
            content[0] ^= 1
            file.unlink()
            file.write_bytes(content)
        elif how == "truncate":
            content = file.read_bytes()[:-1]
            file.unlink()
            file.write_bytes(content)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.log.append(f"{how} {record.path}")

    def add_a_file(self) -> None:
        folders = [path for path in self.folder.glob("folder_*") if path.is_dir()]
        if folders:
            (self.chance.choice(folders) / ".DS_Store").write_text("added")

    def remove(self) -> None:
        assert self.tracker is not None
        if self.model.records:
            record = self.chance.choice(self.model.records)
            self.tracker.remove_checkpoint(self.folder / record.path)
            self.note_removals()
            self.log.append(f"remove {record.path}")

    def repair(self) -> None:
        self.kill()
        repair_run(RunFolder.under(self.folder), clock=self.clock)
        self.log.append("repair")
        self.note_quarantine()
        self.open()
        self.resume()

    def lose_a_snapshot(self) -> None:
        self.kill()
        name = self.chance.choice(["session.json", "checkpoints.json", "progress.json"])
        (self.folder / "progress" / name).unlink(missing_ok=True)
        self.log.append(f"lost {name}")
        self.open()
        self.resume()

    def kill(self) -> None:
        forget_open_runs()
        if self.tracker is not None:
            # A kill ends the threads as well.
            self.tracker._checkpoints.close()
        self.tracker = None

    def kill_and_resume(self) -> None:
        self.kill()
        self.open()
        self.resume()

    def resume_from_an_older_one(self) -> None:
        self.kill()
        self.open()
        usable = [each for each in self.model.records if self.content_of(each) == each.content]
        if usable:
            self.step = self.chance.choice(usable).step
            self.log.append(f"resumed from {self.step} on purpose")
            self.train()

    def open(self) -> None:
        self.rule = self.chance.choice([*RULES, KeepBest(1, by="loss") | KeepLatest(1)])
        # With a bound of 1 byte, every digest is computed in the background, and a kill may come before it.
        self.digests_at_once = self.chance.random() < 0.7
        settings = TrackerSettings(
            has_heartbeat=False, keep=self.rule, large_checkpoint_bytes=1 << 20 if self.digests_at_once else 1
        )
        self.tracker = ProgressTracker(
            self.folder / "progress", {"a": 1}, 10_000, settings=settings, clock=self.clock
        )
        self.last_reported = None

    def resume(self) -> None:
        """The heart of it: what is offered is what the model says, byte for byte."""
        assert self.tracker is not None
        expected = self.model.expected(self.content_of)
        try:
            offered = self.tracker.get_recovery_checkpoint()
        except NoUsableCheckpoint:
            assert expected is None, self.why(f"nothing offered, though {expected} is intact")
            self.note_quarantine()
            self.step = 0
            return
        self.note_quarantine()
        if offered is None:
            assert not self.model.records, self.why("a fresh start, though checkpoints were recorded")
            self.step = 0
            return
        assert expected is not None, self.why(f"{offered.checkpoint_path} offered, and nothing is intact")
        path = Path(offered.checkpoint_path)
        content = (path / "weights" if path.is_dir() else path).read_text()
        assert (expected.step, expected.content) == (offered.checkpoint_step, content), self.why(
            f"{offered.checkpoint_path} at {offered.checkpoint_step} offered instead of {expected}"
        )
        assert expected.step == offered.dataset_position
        self.step = expected.step
        self.log.append(f"resumed at {self.step} from {path.name}")

    # What the model has to see of the disk.

    def content_of(self, record: Record) -> str | None:
        """The bytes of a record: at its path, or kept while its file is overwritten."""
        path = self.folder / record.path
        file = path / "weights" if record.path.startswith("folder") else path
        if file.is_file() and file.read_text() == record.content:
            return record.content
        if self.is_kept(record):
            return record.content
        return file.read_text() if file.is_file() else None

    def is_kept(self, record: Record) -> bool:
        return record.kept.is_file() and record.kept.read_text() == record.content

    def is_kept_apart(self, record: Record) -> bool:
        path = self.folder / record.path
        return self.is_kept(record) and not (path.exists() and record.kept.samefile(path))

    def known_steps(self) -> list[int]:
        assert self.tracker is not None
        history = self.tracker.session.metrics_history
        return [history[-1].step] if history else []

    def note_removals(self) -> None:
        """What a rule or a call has removed: never the one that a restart would offer."""
        assert self.tracker is not None
        session = self.tracker.session
        known = {each.checkpoint_path for each in [*session.checkpoints.values(), *session.checkpoints_beside]}
        gone = [each for each in self.model.records if each.path not in known and not each.is_quarantined]
        if gone:
            expected = max(
                (each for each in self.model.records if not self.model.is_abandoned(each)),
                key=lambda each: (each.step, each.order),
                default=None,
            )
            assert expected not in gone, self.why(f"the newest checkpoint was removed: {expected}")
        self.model.records = [each for each in self.model.records if each not in gone]
        removed = {each.path for each in gone}
        self.model.overwritten = [each for each in self.model.overwritten if each.path not in removed]

    def note_quarantine(self) -> None:
        session = self.tracker.session if self.tracker is not None else None
        moved = {each.name for each in (self.folder / "progress" / "set_aside").glob("*")}
        if session is not None:
            quarantined = {each.checkpoint_path for each in session.checkpoints_set_aside}
            known = {each.checkpoint_path for each in [*session.checkpoints.values(), *session.checkpoints_beside]}
            still = known & self.journalled_as_quarantined()
            assert not still, self.why(f"quarantined, and still known as checkpoints: {still}")
            for each in self.model.records:
                if each.path in quarantined - known and os.path.basename(each.path) in moved:
                    each.is_quarantined = True

    def journalled_as_quarantined(self) -> set[str]:
        """Paths whose last event is that they were moved into quarantine."""
        quarantined: set[str] = set()
        for event in RunReader.open(self.folder).events():
            if isinstance(event, CheckpointRecorded):
                quarantined.discard(event.checkpoint.checkpoint_path)
            elif isinstance(event, CheckpointSetAside):
                quarantined.add(event.checkpoint_path)
        return quarantined

    def why(self, problem: str) -> str:
        return f"{problem}\n" + "\n".join(self.log[-30:])
