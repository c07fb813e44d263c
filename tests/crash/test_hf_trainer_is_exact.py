"""The example of the HF Trainer, killed and started again, computes bit for bit what the uninterrupted run does."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import RunReader
from crashproof.records.events import ReplayDiffered
from crashproof.testing import KilledRun, run_and_kill

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

EXAMPLE = Path(__file__).parents[2] / "examples" / "hf_trainer.py"
STEPS = 24
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(EXAMPLE.parent), os.environ.get("PYTHONPATH", "")]),
}

IN_THE_MIDDLE_OF_A_SAVE = """
import sys, time
from pathlib import Path
from transformers import Trainer
from hf_trainer import main

class DiesSaving(Trainer):
    def _save_rng_state(self, output_dir):
        # The weights and the optimizer are written, the rest is not.
        if self.state.global_step == 12:
            Path(output_dir, "..", "is_saving").touch()
            time.sleep(60)
        super()._save_rng_state(output_dir)

sys.exit(main(Path(sys.argv[1]), trainer_class=DiesSaving))
"""

BEFORE_THE_RECORD = """
import sys, time
from pathlib import Path
from transformers import Trainer
from hf_trainer import main

class DiesBehindTheSave(Trainer):
    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        # Whole for whoever looks, and in no record: a power loss could still take it.
        if self.state.global_step == 16:
            Path(self.args.output_dir, "has_saved").touch()
            time.sleep(60)

sys.exit(main(Path(sys.argv[1]), trainer_class=DiesBehindTheSave))
"""

A_LOSS_IS_NO_NUMBER = """
import sys
from pathlib import Path
from transformers import Trainer
from hf_trainer import main

class Stumbles(Trainer):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        return loss * float("nan") if self.state.global_step == 5 else loss

sys.exit(main(Path(sys.argv[1]), trainer_class=Stumbles))
"""

ANOTHER_COMPUTATION = """
import sys
from pathlib import Path
from transformers import Trainer
from hf_trainer import main

class Changed(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **more):
        found = super().compute_loss(model, inputs, return_outputs=return_outputs, **more)
        return found if return_outputs else found * 1.00001

sys.exit(main(Path(sys.argv[1]), trainer_class=Changed))
"""

ONE_OF_TWO_IS_ASKED_TO_STOP = """
import signal, sys
from pathlib import Path
from transformers import TrainerCallback
from hf_trainer import make_trainer
from crashproof.adapters.transformers import CrashproofCallback

class Asks(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == int(sys.argv[2]):
            signal.raise_signal(signal.SIGTERM)

trainer = make_trainer(Path(sys.argv[1]))
hold = CrashproofCallback(trainer)
trainer.add_callback(Asks())
trainer.train(resume_from_checkpoint=hold.newest_checkpoint())
print(f"process {trainer.args.process_index}: step {trainer.state.global_step}, exit code {hold.exit_code}")
"""


def command(output_dir: Path, program: str | None = None) -> list[str]:
    start = [str(EXAMPLE)] if program is None else ["-c", program]
    return [sys.executable, *start, str(output_dir)]


def run_to_the_end(output_dir: Path, program: str | None = None) -> str:
    done = subprocess.run(
        command(output_dir, program), check=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )
    return done.stdout + done.stderr


def kill(output_dir: Path, when: Callable[[], bool], program: str | None = None, **more: Any) -> KilledRun:
    return run_and_kill(command(output_dir, program), when=when, environment=ENVIRONMENT, **more)


def has_lines(output_dir: Path, count: int) -> Callable[[], bool]:
    metrics = output_dir / "progress" / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= count


def log_history(output_dir: Path) -> list[dict[str, Any]]:
    """Without what says how fast it was."""
    state = json.loads((output_dir / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [
        {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
        for entry in state["log_history"]
    ]


def checkpoints_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    run_to_the_end(output_dir)
    return output_dir


def test_killed_three_times_twice_in_a_save_it_ends_bit_for_bit_like_the_uninterrupted_run(
    uninterrupted: Path, tmp_path: Path
) -> None:
    kills = [
        # In mid-epoch, three steps after a checkpoint.
        kill(tmp_path, has_lines(tmp_path, 7)),
        kill(tmp_path, (tmp_path / "is_saving").exists, IN_THE_MIDDLE_OF_A_SAVE),
        kill(tmp_path, (tmp_path / "has_saved").exists, BEFORE_THE_RECORD),
    ]
    saved_last = checkpoints_in(tmp_path)
    run_to_the_end(tmp_path)

    assert [-signal.SIGKILL] * 3 == [each.return_code for each in kills]
    assert "checkpoint-16" in saved_last
    assert ["checkpoint-12", "checkpoint-16"] == checkpoints_in(tmp_path / "progress" / "set_aside")
    weights = "final/model.safetensors"
    assert (uninterrupted / weights).read_bytes() == (tmp_path / weights).read_bytes()
    for state in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        name = f"checkpoint-{STEPS}/{state}"
        assert (uninterrupted / name).read_bytes() == (tmp_path / name).read_bytes()
    reader, reference = RunReader.open(tmp_path), RunReader.open(uninterrupted)
    assert list(range(1, STEPS + 1)) == [line.step for line in reader.history()]
    assert [seen(line) for line in reference.history()] == [seen(line) for line in reader.history()]
    assert None is reader.session().replay_differed_at
    assert ["crashed", "crashed", "crashed", "completed"] == [each.how for each in reader.session().attempts]
    assert log_history(uninterrupted) == log_history(tmp_path)
    assert ["checkpoint-16", "checkpoint-20", "checkpoint-24"] == checkpoints_in(tmp_path)
    assert [] == reader.problems()


def seen(line: Any) -> tuple[Any, ...]:
    return line.step, line.loss, line.learning_rate, line.samples_processed, line.tokens_processed


def test_the_frameworks_own_history_has_each_step_once_and_crashproofs_has_what_it_averages(
    uninterrupted: Path,
) -> None:
    losses = {line.step: line.loss for line in RunReader.open(uninterrupted).history()}
    logged = {entry["step"]: entry["loss"] for entry in log_history(uninterrupted) if "loss" in entry}
    evaluated = [entry["step"] for entry in log_history(uninterrupted) if "eval_loss" in entry]

    assert list(range(2, STEPS + 1, 2)) == list(logged)
    assert list(range(4, STEPS + 1, 4)) == evaluated
    for step, loss in logged.items():
        assert math.isclose(loss, (losses[step - 1] + losses[step]) / 2, rel_tol=1e-6)


def test_a_non_finite_loss_is_recorded_although_the_frameworks_own_log_hides_it(tmp_path: Path) -> None:
    run_to_the_end(tmp_path, A_LOSS_IS_NO_NUMBER)

    losses = {line.step: line.loss for line in RunReader.open(tmp_path).history()}
    assert [6] == [step for step, loss in losses.items() if not math.isfinite(loss)]
    assert all(math.isfinite(entry["loss"]) for entry in log_history(tmp_path) if "loss" in entry)


@pytest.mark.long
def test_sigterm_lets_it_finish_the_step_save_and_ask_to_be_started_again(
    uninterrupted: Path, tmp_path: Path
) -> None:
    asked = kill(tmp_path, has_lines(tmp_path, 6), signal_number=signal.SIGTERM)
    stopped = RunReader.open(tmp_path).session()
    run_to_the_end(tmp_path)

    assert 75 == asked.return_code
    assert "Start the same command again" in asked.output
    assert stopped.steps_completed == stopped.last_checkpoint_step
    assert ["preempted", "completed"] == [each.how for each in RunReader.open(tmp_path).session().attempts]
    weights = "final/model.safetensors"
    assert (uninterrupted / weights).read_bytes() == (tmp_path / weights).read_bytes()


@pytest.mark.long
def test_another_computation_is_reported_by_the_replay_check(tmp_path: Path) -> None:
    kill(tmp_path, has_lines(tmp_path, 7))

    said = run_to_the_end(tmp_path, ANOTHER_COMPUTATION)

    differed = [event.step for event in RunReader.open(tmp_path).events() if isinstance(event, ReplayDiffered)]
    assert [5] == differed
    assert "was recomputed with a different loss" in said


@pytest.mark.long
def test_two_processes_stop_together_when_one_is_asked_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ONE_OF_TWO_IS_ASKED_TO_STOP)

    def run(output_dir: Path, asked_at: int) -> str:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
        done = subprocess.run(
            [sys.executable, *start, str(output_dir), str(asked_at)],
            check=True,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done.stdout

    never = STEPS + 1
    run(tmp_path / "uninterrupted", never)
    stopped = run(tmp_path / "stopped", 6)
    run(tmp_path / "stopped", never)

    # Asked in step 7, agreed on in it, acted on after the next.
    assert ["process 0: step 8, exit code 75", "process 1: step 8, exit code 75"] == sorted(
        line for line in stopped.splitlines() if line.startswith("process")
    )
    for name in ("model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"):
        path = Path(f"checkpoint-{STEPS}", name)
        assert (tmp_path / "uninterrupted" / path).read_bytes() == (tmp_path / "stopped" / path).read_bytes()
    readers = [RunReader.open(tmp_path / name) for name in ("uninterrupted", "stopped")]
    assert [seen(line) for line in readers[0].history()] == [seen(line) for line in readers[1].history()]
