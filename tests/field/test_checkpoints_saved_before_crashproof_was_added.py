"""What a framework itself would resume is taken up, verified and recorded by its adapter."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_checkpoints import write_archive

pytest.importorskip("lightning")
pytest.importorskip("accelerate")

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.adapters.accelerate import CrashproofTracker
from crashproof.adapters.deferred_run import DeferredRun
from crashproof.adapters.lightning import Crashproof
from crashproof.errors import NoUsableCheckpoint
from crashproof.testing import forget_open_runs

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",
    "ignore:.*does not have many workers",
    "ignore:.*number of training batches",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Experiment logs directory",
    "ignore:The dirpath has changed from",
    "ignore:Be aware that when using `ckpt_path`",
)

QUIET = TrackerSettings(has_heartbeat=False)


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(*, ckpt_path: str | None = None, max_steps: int = 4, **options: Any) -> Trainer:
    usual = {
        "accelerator": "cpu",
        "max_steps": max_steps,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    trainer = Trainer(**(usual | options))
    trainer.fit(Line(), DataLoader(torch.ones(8, 2), batch_size=2), ckpt_path=ckpt_path)
    return trainer


def fit_without_crashproof(run_dir: Path, **saving: Any) -> None:
    fit(
        default_root_dir=run_dir,
        logger=CSVLogger(run_dir, name="lightning_logs"),
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, **saving)],
    )


def fit_with_crashproof(run_dir: Path, max_steps: int) -> tuple[str | None, int]:
    hold = Crashproof(run_dir, settings=QUIET)
    newest = hold.newest_checkpoint()
    trainer = fit(
        ckpt_path=newest,
        max_steps=max_steps,
        logger=hold.logger,
        callbacks=[hold.callback, ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
        plugins=[hold.checkpoint_io],
    )
    return newest, trainer.global_step


def relative(run_dir: Path, path: str | None) -> str | None:
    return None if path is None else str(Path(path).relative_to(run_dir))


def test_lightnings_own_layout_is_taken_up_and_training_goes_on(run_dir: Path) -> None:
    fit_without_crashproof(run_dir)
    newest, step = fit_with_crashproof(run_dir, 8)

    folder = "lightning_logs/version_0/checkpoints"
    assert (f"{folder}/epoch=0-step=4.ckpt", 8) == (relative(run_dir, newest), step)
    reader = RunReader.open(run_dir)
    assert [2, 4, 6, 8] == sorted(reader.session().checkpoints)
    assert [5, 6, 7, 8] == [line.step for line in reader.history()]
    assert [] == reader.problems()


def test_lightnings_last_checkpoint_is_the_newest(run_dir: Path) -> None:
    fit_without_crashproof(run_dir, save_last=True, filename="{epoch}")

    newest = Crashproof(run_dir).newest_checkpoint()
    assert [4] == [max(RunReader.open(run_dir).session().checkpoints)]
    assert newest is not None
    assert 4 == torch.load(newest, weights_only=False)["global_step"]


def test_weights_alone_are_nothing_to_resume(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_without_crashproof(run_dir, save_weights_only=True)

    assert None is Crashproof(run_dir).newest_checkpoint()
    assert "save_weights_only" in caplog.text


def test_a_torn_one_is_passed_over_and_left_where_it_is(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_without_crashproof(run_dir)
    folder = run_dir / "lightning_logs" / "version_0" / "checkpoints"
    os.truncate(folder / "epoch=0-step=4.ckpt", 100)

    assert str(folder / "epoch=0-step=2.ckpt") == Crashproof(run_dir).newest_checkpoint()
    assert "epoch=0-step=4.ckpt is not taken up" in caplog.text
    assert 100 == (folder / "epoch=0-step=4.ckpt").stat().st_size


@pytest.mark.parametrize("name", ["epoch=0-step=4.ckpt", "last.ckpt"])
def test_where_all_are_torn_nothing_starts_at_zero_in_silence(run_dir: Path, name: str) -> None:
    torn = write_archive(run_dir / "checkpoints" / name)
    os.truncate(torn, 100)

    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint, match="damaged or cut off"):
            Crashproof(run_dir).newest_checkpoint()
    assert torn.exists()


def test_checkpoints_of_training_without_crashproof_in_between_are_taken_up_too(run_dir: Path) -> None:
    fit_with_crashproof(run_dir, 2)
    fit(
        max_steps=6,
        ckpt_path=Crashproof(run_dir).newest_checkpoint(),
        default_root_dir=run_dir,
        logger=False,
        callbacks=[ModelCheckpoint(run_dir / "checkpoints", every_n_train_steps=3, save_top_k=-1)],
    )
    newest, step = fit_with_crashproof(run_dir, 8)

    assert ("checkpoints/epoch=1-step=6.ckpt", 8) == (relative(run_dir, newest), step)


def test_what_training_has_gone_past_is_not_taken_up(run_dir: Path) -> None:
    fit_with_crashproof(run_dir, 4)
    known = RunReader.open(run_dir).session().checkpoints
    extra = run_dir / "checkpoints" / "epoch=0-step=3.ckpt"
    extra.write_bytes((run_dir / known[2].checkpoint_path).read_bytes())

    assert relative(run_dir, Crashproof(run_dir).newest_checkpoint()) == known[4].checkpoint_path
    assert [2, 4] == sorted(RunReader.open(run_dir).session().checkpoints)


def test_a_save_that_a_kill_kept_from_being_recorded_is_not_taken_up_behind_a_resume(run_dir: Path, update) -> None:
    fit_with_crashproof(run_dir, 4)
    saved = RunReader.open(run_dir).session().checkpoints[4].checkpoint_path
    # Steps 5 and 6 were journalled, step 6 was saved, and a kill came before its record. A resume began at step 5.
    fit(
        max_steps=6,
        ckpt_path=str(run_dir / saved),
        default_root_dir=run_dir,
        logger=False,
        callbacks=[ModelCheckpoint(run_dir / "checkpoints", every_n_train_steps=3, save_top_k=-1)],
    )
    for steps in ([5, 6], [5]):
        tracker = ProgressTracker(run_dir / "progress", RunReader.open(run_dir).session().config, 8, settings=QUIET)
        for step in steps:
            update(tracker, step)
        tracker.close("preempted")

    assert saved == relative(run_dir, Crashproof(run_dir).newest_checkpoint())


def test_a_file_of_another_program_is_not_lightnings(run_dir: Path) -> None:
    run_dir.mkdir()
    torch.save({"model": {}, "global_step": 5}, run_dir / "checkpoint_5.ckpt")

    assert None is Crashproof(run_dir).newest_checkpoint()


def test_a_new_folder_is_a_fresh_start_and_stays_untouched(run_dir: Path) -> None:
    assert None is Crashproof(run_dir).newest_checkpoint()
    assert not run_dir.exists()


@pytest.mark.parametrize("is_adopted", [False, True], ids=["before", "after"])
def test_every_process_finds_the_same_before_and_after_the_main_one_has_recorded_it(
    run_dir: Path, is_adopted: bool
) -> None:
    fit_without_crashproof(run_dir)
    run = DeferredRun(framework="lightning", output_dir=run_dir, on_config_change="error", settings=QUIET)
    if is_adopted:
        run.newest_checkpoint(is_main=True)
    found = run.newest_checkpoint(is_main=False)

    assert found is not None
    assert is_adopted == (run_dir / "progress").exists()
    assert (4, "lightning_logs/version_0/checkpoints/epoch=0-step=4.ckpt") == (
        found.checkpoint_step,
        relative(run_dir, found.checkpoint_path),
    )


class Loop:
    """A loop with an `Accelerator`."""

    def __init__(self, run_dir: Path, *, has_crashproof: bool = True, is_counting: bool = True) -> None:
        self.tracker = CrashproofTracker(run_dir, total_steps=20, samples_per_step=4, settings=QUIET)
        project = ProjectConfiguration(project_dir=str(run_dir), automatic_checkpoint_naming=not has_crashproof)
        self.accelerator = Accelerator(
            cpu=True, log_with=self.tracker if has_crashproof else None, project_config=project
        )
        if has_crashproof:
            self.accelerator.init_trackers("tiny", config={"lr": 0.1})
        model = nn.Linear(2, 1)
        kind = torch.optim.AdamW if is_counting else torch.optim.SGD
        self.model, self.optimizer = self.accelerator.prepare(model, kind(model.parameters(), lr=0.1))

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.accelerator.backward(self.model(torch.ones(1, 2)).sum())
            self.optimizer.step()


@pytest.fixture
def loops(run_dir: Path) -> Iterator[Any]:
    """Loops in a run's folder, ended with the test."""
    made: list[Loop] = []

    def make(**options: Any) -> Loop:
        forget_open_runs()
        made.append(Loop(run_dir, **options))
        return made[-1]

    yield make
    for each in made:
        each.tracker.finish()
        each.accelerator.free_memory()


def saved_by_accelerate(loops: Any, **options: Any) -> None:
    loop = loops(has_crashproof=False, **options)
    for _ in range(2):
        loop.train(5)
        loop.accelerator.save_state()


def test_what_accelerate_saved_by_itself_is_taken_up_at_its_step(run_dir: Path, loops: Any) -> None:
    saved_by_accelerate(loops)
    loop = loops()
    found = loop.tracker.newest_state()
    loop.accelerator.load_state(found.checkpoint_path)

    assert (10, 40, "checkpoints/checkpoint_1") == (
        found.checkpoint_step,
        found.dataset_position,
        relative(run_dir, found.checkpoint_path),
    )
    loop.accelerator.log({"loss": 0.5}, step=11)
    assert [11] == [line.step for line in RunReader.open(run_dir).history()]
    assert {"framework": "accelerate", "lr": 0.1} == RunReader.open(run_dir).session().config


def test_a_loop_that_resumes_by_itself_is_not_stopped_by_what_was_taken_up(run_dir: Path, loops: Any) -> None:
    saved_by_accelerate(loops)
    loop = loops()
    loop.accelerator.load_state(str(run_dir / "checkpoints" / "checkpoint_1"))
    loop.accelerator.log({"loss": 0.5}, step=11)

    assert [11] == [line.step for line in RunReader.open(run_dir).history()]


def test_a_save_whose_step_nobody_knows_is_named_with_the_way_out(
    run_dir: Path, loops: Any, caplog: pytest.LogCaptureFixture
) -> None:
    saved_by_accelerate(loops, is_counting=False)
    with caplog.at_level(logging.WARNING, "crashproof"):
        loop = loops(is_counting=False)

    assert None is loop.tracker.newest_state()
    assert "checkpoints/checkpoint_1 is not taken up: accelerate numbers its saves" in caplog.text
    assert "--step PATH=STEP" in caplog.text


def test_a_torn_save_of_accelerate_alone_is_an_error(run_dir: Path, loops: Any) -> None:
    saved_by_accelerate(loops)
    for path in (run_dir / "checkpoints").glob("*/random_states_0.pkl"):
        path.unlink()

    with pytest.raises(NoUsableCheckpoint, match="written last is missing"):
        loops()
