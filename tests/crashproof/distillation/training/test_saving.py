"""Saves that fail: on one process here, on several in test_sharded_saves.py."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from crashproof import RunReader, training_progress_context
from crashproof.disk.files import Disk
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.training_state import TrainingState, size_of
from crashproof.errors import DiskFull, SavesFailed
from crashproof.pytorch.checkpoint_file import load_checkpoint
from crashproof.pytorch.ranks import SingleRank
from crashproof.pytorch.staging.copier import StateCopier
from crashproof.records.events import CheckpointFailed
from crashproof.tracking.context import TrainingProgressContext

PARTIAL = ".checkpoint_{}.pt.crashproof-partial"


class Flaky(Disk):
    """Refuses to write checkpoints while it has an error; a partial file stays where removing fails too."""

    error: int | None = None
    keeps_partials = False
    free = 10**12
    num_refused = 0

    def _refuse(self) -> None:
        if self.error is not None:
            self.num_refused += 1
            raise OSError(self.error, os.strerror(self.error))

    def sync(self, file: int) -> None:
        self._refuse()
        super().sync(file)

    def remove_file(self, path: Path) -> None:
        if self.keeps_partials:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        super().remove_file(path)

    def free_bytes(self, path: Path) -> int:
        return self.free


@pytest.fixture
def state() -> TrainingState:
    module = torch.nn.Linear(3, 2)
    return TrainingState(
        module=module,
        optimizer=torch.optim.AdamW(module.parameters()),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ranks=SingleRank(),
        seed=0,
    )


@pytest.fixture
def disk() -> Flaky:
    return Flaky()


class Waits:
    """Counts the seconds that a saver waits, and acts on the way."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.at: dict[float, Callable[[], None]] = {}
        self.is_stop_requested = False

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        for moment in [each for each in self.at if each <= self.seconds]:
            self.at.pop(moment)()


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def context(run_dir: Path) -> Iterator[TrainingProgressContext]:
    with training_progress_context({}, run_dir, 100) as context:
        yield context


@pytest.fixture
def make(
    state: TrainingState, context: TrainingProgressContext, run_dir: Path, disk: Flaky, waits: Waits
) -> Iterator[Callable[..., CheckpointSaver]]:
    made: list[CheckpointSaver] = []

    def make_saver(copier: StateCopier | None = None, **settings: Any) -> CheckpointSaver:
        saver = CheckpointSaver(
            state,
            context,
            run_dir,
            SingleRank(),
            settings=ProgressConfig(**({"saves_behind": False} | settings)),
            is_stop_requested=lambda: waits.is_stop_requested,
            disk=disk,
            sleep=waits.sleep,
            now=waits.now,
            copier=copier,
        )
        made.append(saver)
        return saver

    yield make_saver
    for saver in made:
        saver.close()


def at_step(state: TrainingState, context: TrainingProgressContext, step: int) -> None:
    """Train to a step."""
    state.counters.step = step
    context.update_metrics(step, 1.0, {}, 0.1, step, step)


@pytest.mark.parametrize("is_short", [False, True], ids=["copied", "no memory for a copy"])
def test_a_save_in_the_background_holds_the_state_of_its_step(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    run_dir: Path,
    disk: Flaky,
    is_short: bool,
) -> None:
    saver = make(saves_behind=True, copier=StateCopier(free_bytes=lambda: 0 if is_short else None))
    weight = next(state.module.parameters()).detach()
    # A loop that is run again prepares again.
    saver.prepare()
    saver.prepare()
    for step in (1, 2):
        weight.fill_(float(step))
        at_step(state, context, step)
        saver.save()
        # Written from memory that training does not change: of a copy, or training has waited.
        assert is_short is (saver._background._running is None)
        weight.fill_(-1.0)
    weight.fill_(3.0)
    at_step(state, context, 3)
    saver.finish()

    for step in (1, 2, 3):
        saved = load_checkpoint(run_dir / f"checkpoint_{step}.pt")["tensors"]["module.weight"]
        assert torch.equal(torch.full((2, 3), float(step)), saved)
    assert [1, 2, 3] == sorted(RunReader.open(run_dir).session().checkpoints)


def failures(run_dir: Path) -> list[int]:
    return [each.step for each in RunReader.open(run_dir).events() if isinstance(each, CheckpointFailed)]


@pytest.mark.parametrize("saves_behind", [True, False], ids=["in the background", "waited for"])
@pytest.mark.parametrize(
    "error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE], ids=errno.errorcode.get
)
def test_saves_that_fail_for_a_while_are_events_and_training_goes_on(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    run_dir: Path,
    disk: Flaky,
    caplog: pytest.LogCaptureFixture,
    error: int,
    saves_behind: bool,
) -> None:
    saver = make(saves_behind=saves_behind, max_failed_saves=None)
    with caplog.at_level(logging.WARNING, logger="crashproof"):
        for step in range(10, 70, 10):
            at_step(state, context, step)
            disk.error = error if 20 <= step <= 40 else None
            saver.save()
            while saver._background._running is not None:
                saver.check()
    saver.finish()

    assert [20, 30, 40] == failures(run_dir)
    assert [10, 50, 60] == sorted(RunReader.open(run_dir).session().checkpoints)
    skipped = [each for each in caplog.messages if each.startswith("A checkpoint was skipped: ")]
    assert [False, True, True] == ["saves in a row have failed." in each for each in skipped]
    assert [] == list(run_dir.glob(".*"))


def test_after_the_number_that_may_fail_training_waits_and_then_stops(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    run_dir: Path,
    disk: Flaky,
    waits: Waits,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saver = make(max_failed_saves=2, last_save_seconds=120)
    at_step(state, context, 10)
    saver.save()
    disk.error = errno.EROFS
    for step in (20, 30):
        at_step(state, context, step)
        saver.save()
    assert (0.0, 2) == (waits.seconds, disk.num_refused)
    at_step(state, context, 40)

    with pytest.raises(SavesFailed) as stopped:
        saver.save()

    said = str(stopped.value)
    assert "Step 40 could not be saved" in said
    assert "checkpoint_40.pt cannot be written: Read-only file system" in said
    assert "3 saves in a row have failed. The newest checkpoint is that of step 10, so 30 steps are lost." in said
    assert said.endswith("Then start the same command again: it resumes at step 10.")
    assert [20, 30, 40] == failures(run_dir)
    assert 1 == sum("Training waits, and tries again for up to 2 min 0 s." in each for each in caplog.messages)


def test_a_disk_that_is_freed_while_training_waits_costs_nothing(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    run_dir: Path,
    disk: Flaky,
    waits: Waits,
) -> None:
    saver = make(max_failed_saves=1)
    disk.error = errno.ENOSPC
    for step in (10, 20):
        if step == 20:
            waits.at[100.0] = lambda: setattr(disk, "error", None)
        at_step(state, context, step)
        saver.save()
    at_step(state, context, 30)
    disk.error = errno.ENOSPC
    saver.save()

    assert 100.0 <= waits.seconds <= 131.0
    session = RunReader.open(run_dir).session()
    # The row is over: the next failure is the first of another one.
    assert ([20], [10, 20, 30], 1) == (
        list(session.checkpoints),
        failures(run_dir),
        session.failed_saves.in_a_row,
    )


def test_the_last_save_is_tried_again_for_a_limited_time(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    disk: Flaky,
    waits: Waits,
) -> None:
    saver = make(last_save_seconds=50)
    disk.error = errno.EIO
    at_step(state, context, 7)

    with pytest.raises(SavesFailed) as stopped:
        saver.finish()

    assert 50.0 <= waits.seconds < 52.0
    # Again and again, and less and less often.
    assert 6 == disk.num_refused
    assert "Step 7 could not be saved after 5" in stopped.value.message
    assert "Input/output error" in stopped.value.message
    assert "There is no checkpoint yet, so all 7 steps are lost." in stopped.value.message
    assert "in a row" not in stopped.value.message


@pytest.mark.parametrize("asked_at", [0.0, 5.0, 40.0])
def test_a_run_that_is_asked_to_stop_has_little_time_for_its_last_save(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    disk: Flaky,
    waits: Waits,
    asked_at: float,
) -> None:
    saver = make(last_save_seconds=600)
    disk.error = errno.ENOSPC
    at_step(state, context, 7)
    waits.at[asked_at] = lambda: setattr(waits, "is_stop_requested", True)

    with pytest.raises(SavesFailed):
        saver.finish()

    assert 10.0 <= waits.seconds <= max(11.0, asked_at + 1.0)


def test_without_time_to_try_again_the_last_save_has_one_try(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    disk: Flaky,
    waits: Waits,
) -> None:
    saver = make(last_save_seconds=0)
    disk.error = errno.ENOSPC
    at_step(state, context, 7)

    with pytest.raises(SavesFailed):
        saver.finish()

    assert (1, 0.0) == (disk.num_refused, waits.seconds)


def test_any_number_may_fail_where_none_is_set_but_the_last(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    disk: Flaky,
    waits: Waits,
) -> None:
    saver = make(max_failed_saves=None, last_save_seconds=0)
    disk.error = errno.ENOSPC
    for step in range(1, 41):
        at_step(state, context, step)
        saver.save()

    with pytest.raises(SavesFailed, match=r"40 saves in a row have failed\. There is no checkpoint yet"):
        saver.finish()


def test_what_a_failed_save_leaves_is_swept_by_the_next_and_nothing_else(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    run_dir: Path,
    disk: Flaky,
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign = [".weights.crashproof-partial", ".checkpoint_10.pt.tmp", ".checkpoint_10.crashproof-partial.swp"]
    for name in foreign:
        (run_dir / name).write_bytes(b"of another program")
    saver = make(max_failed_saves=None)
    disk.error, disk.keeps_partials = errno.EIO, True
    for step in (10, 20, 30):
        at_step(state, context, step)
        saver.save()
    left = {each.name for each in run_dir.glob(".*")} - set(foreign)
    disk.error, disk.keeps_partials = None, False
    at_step(state, context, 40)
    saver.save()

    assert {PARTIAL.format(step) for step in (10, 20, 30)} == left
    assert 1 == sum("cannot be removed yet" in each for each in caplog.messages)
    assert set(foreign) == {each.name for each in run_dir.glob(".*")}


def test_space_that_partials_hold_is_freed_before_it_is_asked_for(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    context: TrainingProgressContext,
    run_dir: Path,
    disk: Flaky,
) -> None:
    partial = run_dir / PARTIAL.format(5)
    partial.write_bytes(b"half")
    disk.free_bytes = lambda path: 0 if partial.exists() else 10**9  # type: ignore[method-assign]
    at_step(state, context, 10)
    saver = make()

    saver.require_room()
    saver.save()

    assert (run_dir / "checkpoint_10.pt").exists()


def test_a_run_that_has_no_room_for_one_checkpoint_is_refused(
    make: Callable[..., CheckpointSaver], disk: Flaky
) -> None:
    disk.free = 10

    with pytest.raises(DiskFull, match="10 bytes are free"):
        make().require_room()


@pytest.mark.parametrize("num_saves, is_warned", [(3, False), (4, True)])
def test_a_disk_that_does_not_hold_all_checkpoints_to_come_is_told_of(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    disk: Flaky,
    caplog: pytest.LogCaptureFixture,
    num_saves: int,
    is_warned: bool,
) -> None:
    disk.free = round(3.5 * size_of(state.tensors()))

    make().require_room(num_saves=num_saves)

    assert is_warned is ("does not hold the 4 checkpoints to come" in caplog.text)


def test_a_checkpoint_that_cannot_be_recorded_has_failed(
    make: Callable[..., CheckpointSaver],
    state: TrainingState,
    run_dir: Path,
    tmp_path: Path,
    waits: Waits,
) -> None:
    class RefusesRecords(Disk):
        is_refusing = True

        def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
            if self.is_refusing and b'"checkpoint_recorded"' in bytes(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(file, content)

    disk = RefusesRecords()
    with training_progress_context({}, tmp_path / "other", 100, disk=disk) as context:
        saver = CheckpointSaver(
            state,
            context,
            tmp_path / "other",
            SingleRank(),
            settings=ProgressConfig(),
            sleep=waits.sleep,
            now=waits.now,
        )
        at_step(state, context, 10)
        saver.save()
        saver._wait_for_last()
        saved = saver.saved_step
        disk.is_refusing = False
        saver.finish()
        saver.close()

    assert (0, 10) == (saved, saver.saved_step)
    assert [10] == failures(tmp_path / "other")
    assert [10] == list(RunReader.open(tmp_path / "other").session().checkpoints)
