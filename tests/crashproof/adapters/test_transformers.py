"""The adapter of the HF Trainer, in one process: what it keeps, where it resumes, what it refuses."""

from __future__ import annotations

import fcntl
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from crashproof import KeepEvery, RunReader, TrackerSettings, training_progress_context
from crashproof.adapters.transformers import CrashproofCallback
from crashproof.errors import (
    BadStep,
    ConfigChanged,
    ConfigError,
    NoUsableCheckpoint,
    OtherRun,
    RunClosed,
    RunInUse,
    SavesFailed,
)
from crashproof.optional_dependencies import install_line

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class Line(torch.nn.Module):
    """The smallest model that a Trainer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        guess = self.linear(x)[:, 0]
        return {"loss": ((guess - y) ** 2).mean(), "guess": guess}


class Fails(TrainerCallback):
    """Ends the training with an exception."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise ArithmeticError("out of luck")


@pytest.fixture
def sigterm_as_before() -> Iterator[None]:
    """For a Trainer that takes SIGTERM for itself when it is made, and gives it back only when it has trained."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


DATA = [{"x": torch.tensor([float(n), 1.0]) / 10, "y": torch.tensor(float(n)) / 5} for n in range(10)]


def make_trainer(output_dir: Path | str | None, **more: Any) -> Trainer:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "label_names": ["y"],
    }
    args = TrainingArguments(output_dir=None if output_dir is None else str(output_dir), **(settings | more))
    return Trainer(Line(), args, train_dataset=DATA, eval_dataset=DATA[:3])


def trained(output_dir: Path, **more: Any) -> CrashproofCallback:
    trainer = make_trainer(output_dir, **more)
    hold = CrashproofCallback(trainer)
    trainer.train(resume_from_checkpoint=hold.newest_checkpoint())
    return hold


def newest(output_dir: Path, *, on_config_change: str = "archive", **more: Any) -> str | None:
    return CrashproofCallback(make_trainer(output_dir, **more), on_config_change=on_config_change).newest_checkpoint()


@pytest.mark.parametrize("most", [None, 0])
def test_a_checkpoint_that_cannot_be_made_durable_is_a_failed_save(tmp_path, monkeypatch, most):
    def refuse(path: Path) -> None:
        if path.name == "checkpoint-2":
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("crashproof.adapters.transformers.make_durable", refuse)
    trainer = make_trainer(tmp_path)
    CrashproofCallback(trainer, settings=TrackerSettings(has_heartbeat=False, max_failed_saves=most))
    if most is None:
        trainer.train()
    else:
        with pytest.raises(SavesFailed, match=r"Step 2 could not be saved: .*Input/output error"):
            trainer.train()

    session = RunReader.open(tmp_path).session()
    assert (([4, 6], 1) if most is None else ([], 1)) == (sorted(session.checkpoints), session.failed_saves.total)


def alter(checkpoint: Path) -> None:
    """One bit of the weights."""
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def tear(output_dir: Path, step: int) -> Path:
    """What a kill leaves in the middle of a save."""
    torn = output_dir / f"checkpoint-{step}"
    shutil.copytree(output_dir / "checkpoint-2", torn)
    (torn / "trainer_state.json").unlink()
    return torn


def set_aside(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "progress" / "set_aside").glob("*"))


def test_a_bad_step_ends_the_training_where_that_is_asked_for(run_dir):
    trainer = make_trainer(run_dir)
    compute_loss = trainer.compute_loss

    def spoil_the_third(*arguments: Any, **more: Any) -> Any:
        loss: Any = compute_loss(*arguments, **more)
        return loss * (float("nan") if trainer.state.global_step == 2 else 1.0)

    trainer.compute_loss = spoil_the_third
    CrashproofCallback(trainer, on_bad_step="stop")

    with pytest.raises(BadStep, match=r"Step 3 has a non-finite loss\..* newest healthy checkpoint is checkpoint-2"):
        trainer.train()

    session = RunReader.open(run_dir).session()
    assert ([3], "raised") == ([each.step for each in session.bad_steps], session.attempts[-1].how)


def test_a_new_folder_starts_at_step_0_and_the_lookup_touches_no_disk(tmp_path):
    assert None is newest(tmp_path / "new")
    assert not (tmp_path / "new" / "progress").exists()


def test_every_step_checkpoint_and_evaluation_is_recorded(tmp_path):
    trained(tmp_path, eval_strategy="steps", eval_steps=3, save_steps=3, gradient_accumulation_steps=2)

    reader = RunReader.open(tmp_path)
    lines = list(reader.history())
    checkpoint = reader.session().checkpoints[6]
    assert [1, 2, 3, 4, 5, 6] == [line.step for line in lines]
    # Ten samples in batches of two and steps of two batches: the third step of an epoch has one.
    assert [4, 8, 10, 14, 18, 20] == [line.samples_processed for line in lines]
    assert [5e-5 * (6 - step) / 6 for step in range(6)] == pytest.approx([line.learning_rate for line in lines])
    assert (6, 20, {"eval_loss"}) == (
        checkpoint.metrics.step,
        checkpoint.dataset_position,
        set(checkpoint.evaluation),
    )
    assert "completed" == reader.session().attempts[-1].how
    assert [] == reader.problems()


def test_it_resumes_at_the_newest_checkpoint_and_counts_continue(tmp_path):
    trained(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-6")

    assert str(tmp_path / "checkpoint-4") == newest(tmp_path)

    trainer = make_trainer(tmp_path)
    CrashproofCallback(trainer)
    trainer.train(resume_from_checkpoint=True)
    lines = list(RunReader.open(tmp_path).history())
    assert [2, 4, 6, 8, 10, 12] == [line.samples_processed for line in lines]
    assert [1, 1, 1, 1, 2, 2] == [1 if line.attempt == 1 else 2 for line in lines]
    assert None is RunReader.open(tmp_path).session().replay_differed_at


@pytest.mark.parametrize("max_steps", [5, 6], ids=["at an epoch's end", "in mid-epoch"])
def test_a_run_killed_behind_its_last_checkpoint_trains_no_further_step(tmp_path, max_steps):
    options = {"max_steps": max_steps, "save_steps": 1, "lr_scheduler_type": "constant"}
    trained(tmp_path, **options)
    trainer = make_trainer(tmp_path, **options)
    hold = CrashproofCallback(trainer)

    done = trainer.train(resume_from_checkpoint=hold.newest_checkpoint())

    saved = load_file(tmp_path / f"checkpoint-{max_steps}" / "model.safetensors")
    assert max_steps == done.global_step
    assert list(range(1, max_steps + 1)) == [line.step for line in RunReader.open(tmp_path).history()]
    assert all(torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items())
    assert ["completed"] * 2 == [each.how for each in RunReader.open(tmp_path).session().attempts]


def test_a_complete_run_that_is_started_again_has_its_best_model(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    # So fast that the loss grows: the best model is an early one.
    options |= {"learning_rate": 100.0, "lr_scheduler_type": "constant"}
    trained(tmp_path, **options)
    trainer = make_trainer(tmp_path, **options)
    hold = CrashproofCallback(trainer)

    trainer.train(resume_from_checkpoint=hold.newest_checkpoint())

    best = Path(trainer.state.best_model_checkpoint)
    saved = load_file(best / "model.safetensors")
    assert "checkpoint-6" != best.name
    assert all(torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items())


def test_an_altered_checkpoint_is_quarantined_and_the_one_before_it_is_used(tmp_path, caplog):
    trained(tmp_path)
    alter(tmp_path / "checkpoint-6")

    assert str(tmp_path / "checkpoint-4") == newest(tmp_path)
    assert ["checkpoint-6"] == set_aside(tmp_path)
    assert [6] == [each.checkpoint_step for each in RunReader.open(tmp_path).session().checkpoints_set_aside]
    assert "the bytes of model.safetensors differ" in caplog.text


def test_if_all_are_altered_it_never_starts_over_silently(tmp_path):
    trained(tmp_path)
    for checkpoint in tmp_path.glob("checkpoint-*"):
        alter(checkpoint)

    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint) as raised:
            newest(tmp_path)
        assert 3 == len(raised.value.refused)


def test_a_checkpoint_torn_by_a_kill_is_quarantined_so_that_transformers_does_not_find_it(tmp_path):
    trained(tmp_path)
    torn = tear(tmp_path, 7)
    assert str(torn) == get_last_checkpoint(str(tmp_path))

    assert str(tmp_path / "checkpoint-6") == newest(tmp_path)
    assert str(tmp_path / "checkpoint-6") == get_last_checkpoint(str(tmp_path))
    assert ["checkpoint-7"] == set_aside(tmp_path)


def test_a_run_killed_in_its_first_save_starts_over(tmp_path):
    trained(tmp_path, save_strategy="no")
    make_trainer(tmp_path / "other", max_steps=2).train()
    shutil.copytree(tmp_path / "other" / "checkpoint-2", tmp_path / "checkpoint-2")

    assert None is newest(tmp_path, save_strategy="no")
    assert ["checkpoint-2"] == set_aside(tmp_path)


def test_checkpoints_from_before_crashproof_are_checked_and_adopted(tmp_path):
    make_trainer(tmp_path).train()
    tear(tmp_path, 8)

    assert str(tmp_path / "checkpoint-6") == newest(tmp_path)
    assert ["checkpoint-8"] == set_aside(tmp_path)
    assert [2, 4, 6] == sorted(RunReader.open(tmp_path).session().checkpoints)

    trained(tmp_path, max_steps=8)
    session = RunReader.open(tmp_path).session()
    assert (8, 16) == (session.steps_completed, session.samples_processed)
    assert [2, 4, 6, 8] == sorted(session.checkpoints)


def test_checkpoints_of_training_without_crashproof_in_between_are_adopted_too(tmp_path):
    trained(tmp_path)
    make_trainer(tmp_path, max_steps=10).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))

    assert str(tmp_path / "checkpoint-10") == newest(tmp_path, max_steps=12)
    assert [] == set_aside(tmp_path)


def test_if_all_from_before_crashproof_are_torn_every_start_is_an_error(tmp_path):
    make_trainer(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()

    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint, match=r"checkpoint-2: it has no trainer_state\.json"):
            newest(tmp_path)


def test_another_config_is_another_run(tmp_path):
    trained(tmp_path)

    with pytest.raises(ConfigChanged, match=r"train\.learning_rate: .* → 0\.5"):
        newest(tmp_path, learning_rate=0.5, on_config_change="error")
    assert str(tmp_path / "checkpoint-6") == newest(tmp_path, learning_rate=0.5, on_config_change="continue")
    assert None is newest(tmp_path, learning_rate=0.5)

    hold = trained(tmp_path, learning_rate=0.5)
    assert 0 == hold.exit_code
    assert 1 == len(list((tmp_path / "progress" / "archive").iterdir()))


def test_how_to_log_save_and_evaluate_and_how_long_to_train_do_not_make_it_another_run(tmp_path):
    trained(tmp_path)

    found = newest(
        tmp_path,
        on_config_change="error",
        max_steps=60,
        logging_steps=5,
        save_steps=3,
        save_total_limit=2,
        eval_strategy="epoch",
        dataloader_num_workers=1,
        hub_token="hf_secret",
    )

    assert str(tmp_path / "checkpoint-6") == found


def test_the_folder_of_another_programs_run_is_left_alone(tmp_path):
    with training_progress_context({"lr": 1}, tmp_path, 5) as progress:
        progress.update_metrics(1, 1.0, {}, 0.1, 1, 1)
    trainer = make_trainer(tmp_path)
    hold = CrashproofCallback(trainer)

    with pytest.raises(OtherRun, match="one of another program, not one of transformers"):
        hold.newest_checkpoint()
    with pytest.raises(OtherRun):
        trainer.train()
    assert [1] == [line.step for line in RunReader.open(tmp_path).history()]


def test_what_another_live_process_may_be_saving_is_not_moved(tmp_path):
    trained(tmp_path)
    torn = tear(tmp_path, 7)

    # To the kernel, a second open file is a second owner.
    with (tmp_path / "progress" / "writer.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunInUse):
            newest(tmp_path)

    assert torn.exists()


@pytest.mark.parametrize("output_dir", [None, "trainer_output", "tmp_trainer"])
def test_a_trainer_needs_an_output_folder_of_its_own(output_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="no output_dir of its own"):
        CrashproofCallback(make_trainer(output_dir))


def test_a_second_callback_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    CrashproofCallback(trainer)

    with pytest.raises(ConfigError, match="has a CrashproofCallback already"):
        CrashproofCallback(trainer)


def test_a_second_way_to_save_on_sigterm_is_refused(tmp_path, sigterm_as_before):
    with pytest.raises(ConfigError, match="enable_jit_checkpoint"):
        CrashproofCallback(make_trainer(tmp_path, enable_jit_checkpoint=True))


def test_the_run_is_open_only_while_it_trains(tmp_path):
    trainer = make_trainer(tmp_path)
    hold = CrashproofCallback(trainer)
    seen = []

    class Looks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(hold.tracker.session.steps_completed)
            with pytest.raises(ConfigError, match="while the run is training"):
                hold.newest_checkpoint()

    trainer.add_callback(Looks())
    with pytest.raises(RunClosed, match="is open only while"):
        _ = hold.tracker
    trainer.train()

    assert [1, 2, 3, 4, 5, 6] == seen
    with pytest.raises(RunClosed):
        _ = hold.tracker
    trainer.evaluate()
    assert [] == RunReader.open(tmp_path).session().evaluations


def test_an_exception_ends_the_attempt_and_restores_the_signal_handlers(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path)
    CrashproofCallback(trainer)
    trainer.add_callback(Fails())

    with pytest.raises(ArithmeticError):
        trainer.train()

    attempt = RunReader.open(tmp_path).session().attempts[-1]
    assert ("raised", "ArithmeticError: out of luck") == (attempt.how, attempt.error)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert str(tmp_path / "checkpoint-2") == newest(tmp_path)


def test_sigterm_stops_after_the_current_step_with_a_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, save_steps=100)
    hold = CrashproofCallback(trainer)

    class AsksToStop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

    trainer.add_callback(AsksToStop())
    trainer.train()

    session = RunReader.open(tmp_path).session()
    assert (True, 75) == (hold.was_preempted, hold.exit_code)
    assert (3, 3, "preempted") == (
        session.steps_completed,
        session.last_checkpoint_step,
        session.attempts[-1].how,
    )


def test_old_checkpoints_are_deleted_by_crashproof_and_the_best_one_stays(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="crashproof")
    trainer = make_trainer(
        tmp_path,
        max_steps=10,
        learning_rate=10.0,
        eval_strategy="steps",
        eval_steps=2,
        save_total_limit=2,
        load_best_model_at_end=True,
    )
    CrashproofCallback(trainer)

    trainer.train()

    best = Path(trainer.state.best_model_checkpoint).name
    assert {best, "checkpoint-8", "checkpoint-10"} == {path.name for path in tmp_path.glob("checkpoint-*")}
    assert best not in ("checkpoint-8", "checkpoint-10")
    assert None is trainer.args.save_total_limit
    assert 1 == caplog.text.count("crashproof applies save_total_limit=2")


def test_a_rule_of_ones_own_is_kept_beside_the_limit(tmp_path):
    trainer = make_trainer(tmp_path, save_total_limit=1)
    CrashproofCallback(trainer, settings=TrackerSettings(keep=KeepEvery(4)))

    trainer.train()

    assert {"checkpoint-4", "checkpoint-6"} == {path.name for path in tmp_path.glob("checkpoint-*")}


def test_starting_at_step_0_despite_a_checkpoint_is_logged(tmp_path, caplog):
    trained(tmp_path)
    trainer = make_trainer(tmp_path)
    CrashproofCallback(trainer)

    trainer.train()

    assert "Training begins at step 0 though checkpoint-6 is recorded" in caplog.text
    assert [1, 2, 3, 4, 5, 6] == [line.step for line in RunReader.open(tmp_path).history()]


def test_without_transformers_the_adapter_prints_the_install_line():
    program = "import sys; sys.modules['transformers'] = None; import crashproof.adapters.transformers"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert f"'transformers' is not installed. Run: {install_line('transformers')}" in said.stderr
