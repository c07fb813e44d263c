"""Each kind of damage to a checkpoint, saved in each way: what a restart is offered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
from foreign_checkpoints import write_hugging_face, write_safetensors
from torch import distributed
from torch.distributed import HashStore

from crashproof import ProgressTracker, TrackerSettings, write_atomically, write_folder_atomically
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NoUsableCheckpoint
from crashproof.pytorch.ranks import DistributedRanks
from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.bounded_store import BoundedStore
from crashproof.pytorch.ranks.peers import Peers
from crashproof.pytorch.sharded_checkpoint import save_shards
from crashproof.reading.run_state import read_run
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.testing import forget_open_runs

ROOT = Path(__file__).parents[2]
CONFIG = {"lr": 0.1}
ALL_ARE_LARGE = 1
"""With this bound, in bytes, every checkpoint of other code is digested in the background."""

# What becomes of a damaged checkpoint.
FOUND = "found"
"""Another one is offered; where there is none, an error names it and why."""
INTACT = "intact"
"""It is harmless, and the checkpoint is offered."""
ONLY_BESIDE_OTHERS = "found beside others"
"""Another one is offered; where there is none, the damaged one is."""
NOT_FOUND = "not found"
"""The damaged one is offered."""
NO_SUCH = "-"


# Ways of saving.


def write(tracker: ProgressTracker, folder: Path, step: int, num_bytes: int = 5000) -> Path:
    content = Random(step).randbytes(num_bytes)
    path = folder / f"checkpoint_{step}.bin"
    tracker.record_checkpoint(step, path, step, written=write_atomically(path, lambda file: file.write(content)))
    return path


def write_large(tracker: ProgressTracker, folder: Path, step: int) -> Path:
    # Digested in a thread of its own, beside the writing.
    return write(tracker, folder, step, 2 << 20)


def adopt_archive(tracker: ProgressTracker, folder: Path, step: int) -> Path:
    path = folder / f"checkpoint_{step}.pt"
    torch.save({"weights": torch.full((4000,), float(step)), "step": step}, path)
    tracker.record_checkpoint(step, path, step)
    return path


def adopt_safetensors(tracker: ProgressTracker, folder: Path, step: int) -> Path:
    path = write_safetensors(folder / f"checkpoint_{step}.safetensors", 8000)
    path.write_bytes(path.read_bytes()[:-8] + step.to_bytes(8, "little"))
    tracker.record_checkpoint(step, path, step)
    return path


def adopt_folder(tracker: ProgressTracker, folder: Path, step: int) -> Path:
    path = write_hugging_face(folder, step)
    weights = write_safetensors(path / "model.safetensors", 8000)
    weights.write_bytes(weights.read_bytes()[:-8] + step.to_bytes(8, "little"))
    tracker.record_checkpoint(step, path, step)
    return path


def write_folder(tracker: ProgressTracker, folder: Path, step: int) -> Path:
    path = folder / f"checkpoint_{step}"
    with write_folder_atomically(path) as partial:
        torch.save({"weights": torch.full((4000,), float(step))}, partial / "model.pt")
        (partial / "config.json").write_text('{"layers": 2}')
    tracker.record_checkpoint(step, path, step)
    return path


def write_shards(tracker: ProgressTracker, folder: Path, step: int) -> Path:
    path = folder / f"checkpoint_{step}"
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        store = BoundedStore(HashStore(), name="this process")
        ranks = DistributedRanks(Peers(store, Activities(), rank=0, num_ranks=1, limit_seconds=60.0))
        tensors = {"weights": torch.full((4000,), float(step))}
        digest = save_shards(path, tensors, {"random": torch.zeros(3)}, {"step": step}, ranks)
    finally:
        distributed.destroy_process_group()
    tracker.record_checkpoint(step, path, step, written=digest)
    return path


@dataclass(frozen=True, kw_only=True)
class Way:
    """How checkpoints are saved."""

    name: str
    save: Callable[[ProgressTracker, Path, int], Path] | None = None
    """Saves and records one; None where a framework does."""
    is_large: bool = False
    is_killed_before_digest: bool = False
    is_folder: bool = False
    program: tuple[str, ...] = ()
    """The example that saves with the framework, and its options."""

    def make(self, folder: Path, made: Path, num_checkpoints: int) -> None:
        """A run with two checkpoints (or more, of a framework), or with the newest alone, whose writer is dead."""
        if self.save is None:
            shutil.copytree(made / str(num_checkpoints), folder)
            return
        tracker = open_run(folder)
        for step in range(3 - num_checkpoints, 3):
            if step == 2 and self.is_large:
                tracker.close()
                tracker = open_run(folder, large_checkpoint_bytes=ALL_ARE_LARGE)
            tracker.update_metrics(step, 1.0, {}, 0.1, step, step)
            self.save(tracker, folder, step)
        if self.is_killed_before_digest:
            forget_open_runs()
        else:
            tracker.close()

    def train(self, folder: Path) -> None:
        """Run the framework once: `2` is its run, in `1` all checkpoints but the newest are removed."""
        program, *options = self.program
        subprocess.run(
            [sys.executable, str(ROOT / "examples" / program), str(folder / "2"), *options],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        alone = shutil.copytree(folder / "2", folder / "1")
        tracker = open_run(alone)
        for path in checkpoints_of(alone)[:-1]:
            assert tracker.remove_checkpoint(path)
        tracker.close()


WAYS = {
    "write_atomically": Way(name="`write_atomically`", save=write),
    "write_atomically-large": Way(name="`write_atomically`, large", save=write_large, is_large=True),
    "adopted": Way(name="file of `torch.save`", save=adopt_archive),
    "adopted-large": Way(name="large file of `torch.save`", save=adopt_archive, is_large=True),
    "adopted-cut": Way(
        name="the same, killed before its digest",
        save=adopt_archive,
        is_large=True,
        is_killed_before_digest=True,
    ),
    "safetensors": Way(name="file of safetensors", save=adopt_safetensors),
    "safetensors-large": Way(name="large file of safetensors", save=adopt_safetensors, is_large=True),
    "safetensors-cut": Way(
        name="the same, killed before its digest",
        save=adopt_safetensors,
        is_large=True,
        is_killed_before_digest=True,
    ),
    "folder": Way(name="folder of other code", save=adopt_folder, is_folder=True),
    "folder-cut": Way(
        name="large folder of other code, killed before its digest",
        save=adopt_folder,
        is_folder=True,
        is_large=True,
        is_killed_before_digest=True,
    ),
    "write_folder_atomically": Way(name="`write_folder_atomically`", save=write_folder, is_folder=True),
    "shards": Way(name="shards of `torchrun`'s ranks", save=write_shards, is_folder=True),
    "transformers": Way(name="HF Trainer", is_folder=True, program=("hf_trainer.py",)),
    "lightning": Way(name="Lightning", program=("lightning_trainer.py", "--epochs", "1")),
    "accelerate": Way(name="Accelerate", is_folder=True, program=("accelerate_loop.py", "--steps", "8")),
}


# Kinds of damage.


def keeping_times(change: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """As a disk damages: the file system knows nothing of it."""

    def damage(path: Path, other: Path) -> None:
        file = weights_in(path)
        before = file.stat()
        change(path, other)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return damage


def flip(place: float) -> Callable[[Path, Path], None]:
    def damage(path: Path, other: Path) -> None:
        file = weights_in(path)
        content = bytearray(file.read_bytes())
        content[min(int(len(content) * place), len(content) - 1)] ^= 1
        with file.open("r+b") as opened:
            opened.write(content)

    return damage


def truncate(part: Callable[[int], int]) -> Callable[[Path, Path], None]:
    return lambda path, other: os.truncate(weights_in(path), part(weights_in(path).stat().st_size))


def remove(path: Path, other: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def fill_with_zeros(path: Path, other: Path) -> None:
    with weights_in(path).open("r+b") as file:
        file.write(bytes(weights_in(path).stat().st_size))


def replace_by_a_folder(path: Path, other: Path) -> None:
    file = weights_in(path)
    file.unlink()
    file.mkdir()


def copy_another_step_over_it(path: Path, other: Path) -> None:
    # A removed file's inode would be given to the next one.
    copy(other, new := path.with_name("new"))
    remove(path, other)
    new.rename(path)


def remove_a_file(path: Path, other: Path) -> None:
    min(files_in(path), key=lambda each: each.stat().st_size).unlink()


def touch(path: Path, other: Path) -> None:
    os.utime(weights_in(path), ns=(1, 1))


def add_a_file(path: Path, other: Path) -> None:
    (path / ".DS_Store").write_text("added")


def remove_permission(path: Path, other: Path) -> None:
    weights_in(path).chmod(0)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What happens to a checkpoint, in a folder to its largest file."""

    name: str
    harm: Callable[[Path, Path], None]
    """Given the checkpoint and a copy of another one."""
    is_harmless: bool = False
    is_of_folders: bool = False


DAMAGES = [
    Damage(name="bit flipped in the header", harm=keeping_times(flip(0.0))),
    Damage(name="bit flipped in the middle", harm=keeping_times(flip(0.5))),
    Damage(name="bit flipped at the end", harm=keeping_times(flip(1.0))),
    Damage(name="bit flipped by a program", harm=flip(0.5)),
    Damage(name="a byte short", harm=truncate(lambda size: size - 1)),
    Damage(name="half of it", harm=truncate(lambda size: size // 2)),
    Damage(name="empty", harm=truncate(lambda size: 0)),
    Damage(name="removed", harm=remove),
    Damage(name="zeros", harm=keeping_times(fill_with_zeros)),
    Damage(name="a folder in its place", harm=replace_by_a_folder),
    Damage(name="another step's bytes", harm=copy_another_step_over_it),
    Damage(name="a file of it removed", harm=remove_a_file, is_of_folders=True),
    Damage(name="not readable", harm=remove_permission),
    Damage(name="touched", harm=touch, is_harmless=True),
    Damage(name="a file added", harm=add_a_file, is_harmless=True, is_of_folders=True),
]

WITHOUT_DIGEST_OR_CHECKSUM = {
    "bit flipped in the middle": NOT_FOUND,
    "bit flipped at the end": NOT_FOUND,
    "another step's bytes": ONLY_BESIDE_OTHERS,
    # Who has touched a file may have written to it.
    "touched": FOUND,
}
"""The layout of the file, and sizes, inodes and times that were recorded, are all that can be compared."""
LIMITS = {
    "adopted-cut": {"another step's bytes": ONLY_BESIDE_OTHERS, "touched": FOUND},
    "safetensors-cut": WITHOUT_DIGEST_OR_CHECKSUM,
    "folder-cut": WITHOUT_DIGEST_OR_CHECKSUM,
}
"""Cells that are neither found nor intact: known limits, which docs/DURABILITY.md names."""


def expected(way: str, damage: Damage) -> str:
    is_possible = WAYS[way].is_folder or not damage.is_of_folders
    if not is_possible or (damage.harm is remove_permission and os.geteuid() == 0):
        return NO_SUCH
    return LIMITS.get(way, {}).get(damage.name, INTACT if damage.is_harmless else FOUND)


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


# What a restart is offered.


def open_run(folder: Path, *, large_checkpoint_bytes: int = 64 << 20) -> ProgressTracker:
    """As its program would: with the config and the length that it has."""
    session = read_run(RunFolder.under(folder)).session
    settings = TrackerSettings(has_heartbeat=False, large_checkpoint_bytes=large_checkpoint_bytes)
    if session is None:
        return ProgressTracker(folder / "progress", CONFIG, 10, settings=settings)
    return ProgressTracker(folder / "progress", session.config, session.total_steps_target, settings=settings)


def checkpoints_of(folder: Path) -> list[Path]:
    """The oldest first."""
    session = read_run(RunFolder.under(folder)).session
    assert session is not None
    return [folder / each.checkpoint_path for each in CheckpointCatalog(session).all()]


def files_in(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def weights_in(path: Path) -> Path:
    """The file of a checkpoint that is damaged."""
    return max(files_in(path), key=lambda each: each.stat().st_size, default=path / "gone")


def content_of(path: Path) -> dict[str, bytes]:
    names = {str(each.relative_to(path)): each.read_bytes() for each in files_in(path)}
    return {name: content for name, content in names.items() if name != ".DS_Store"}


def offered(folder: Path, damaged: Path, caplog: pytest.LogCaptureFixture) -> Path | None:
    """What a restart is offered; None for an error. Either says why the damaged one is not."""
    caplog.clear()
    tracker = open_run(folder)
    try:
        found = tracker.get_recovery_checkpoint()
        assert found is not None, "a silent start from zero"
        reasons = [each.getMessage() for each in caplog.records if damaged.name in each.getMessage()]
    except NoUsableCheckpoint as error:
        found, reasons = None, [str(error)]
    finally:
        tracker.close()
    if found is None or Path(found.checkpoint_path) != damaged:
        why = rf"{re.escape(damaged.name)}(: | cannot be used: ).*\b(it|its|in it|the bytes)\b"
        assert any(re.search(why, each) for each in reasons), f"no reason is given: {reasons}"
    return None if found is None else Path(found.checkpoint_path)


def outcome(way: Way, damage: Damage, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Damage the newest checkpoint of a run where an older one is intact, and of one where there is no other."""
    seen = []
    other = folder / f"another for {damage.name}"
    for num_checkpoints in (2, 1):
        run = folder / f"{num_checkpoints} of {damage.name}"
        way.make(run, folder / "made", num_checkpoints)
        *older, newest = checkpoints_of(run)
        originals = {path: content_of(path) for path in (*older, newest)}
        if older:
            copy(older[-1], other)
        # A file system's clock may tick only every few milliseconds.
        time.sleep(0.02)
        damage.harm(newest, other)
        found = offered(run, newest, caplog)
        if found is None:
            seen.append("error")
        else:
            is_intact = os.access(weights_in(found), os.R_OK) and content_of(found) == originals[found]
            assert found == newest or (found == older[-1] and is_intact)
            seen.append("older" if found != newest else "newest" if is_intact else "damaged")
    return {
        ("older", "error"): FOUND,
        ("newest", "newest"): INTACT,
        ("older", "damaged"): ONLY_BESIDE_OTHERS,
        ("damaged", "damaged"): NOT_FOUND,
    }.get((seen[0], seen[1]), " ".join(seen))


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, list[str]]]:
    """By way, printed once all have been tried."""
    rows: dict[str, list[str]] = {}
    yield rows
    print("\n| saved by | " + " | ".join(each.name for each in DAMAGES) + " |")
    print("|---" * (len(DAMAGES) + 1) + "|")
    for way, cells in rows.items():
        print(f"| {WAYS[way].name} | " + " | ".join(cells) + " |")


@pytest.mark.parametrize("way", WAYS)
def test_of_each_damage_a_restart_is_offered_what_the_table_says(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, table: dict[str, list[str]]
) -> None:
    if WAYS[way].program:
        pytest.importorskip(way)
        WAYS[way].train(tmp_path / "made")

    found = [
        outcome(WAYS[way], damage, tmp_path, caplog) if expected(way, damage) != NO_SUCH else NO_SUCH
        for damage in DAMAGES
    ]

    table[way] = found
    names = [each.name for each in DAMAGES]
    assert dict(zip(names, [expected(way, each) for each in DAMAGES], strict=True)) == dict(
        zip(names, found, strict=True)
    )
