"""`crashproof prove` on programs in PyTorch, on the frameworks, and on the trainers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from proved_program import Bug, with_bug
from proved_torch_program import TORCH_BUGS, TORCH_PROGRAM

from crashproof.proof.prover import prove_command
from crashproof.proof.scratch import Scratch
from crashproof.records.proof.certificate import Certificate

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SMALLER = [
    *("train.steps=14", "train.batch_size=4", "train.gradient_accumulation=2", "train.warmup_steps=3"),
    *("student.d_model=32", "student.num_layers=1", "progress.checkpoint_interval=3"),
]
GENERATED = ["data.samples=60", "progress.eval_every=8"]
TAUGHT = ["teacher.steps=10", "teacher.d_model=32", "teacher.num_layers=1"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def prove(tmp_path: Path, *command: str, num_kills: int = 3) -> Certificate:
    scratch = Scratch(tmp_path / "scratch")
    return prove_command([sys.executable, *command, "{output_dir}"], scratch, num_kills=num_kills, say=print)


def require_exact(certificate: Certificate) -> None:
    print(certificate.seconds, certificate.compared, certificate.passed_over)

    assert (None, "exact", []) == (certificate.problem, certificate.verdict, certificate.notes)
    assert 3 == len(certificate.kills)
    assert [] == certificate.not_shown


def test_a_correct_program_is_certified(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TORCH_PROGRAM)

    require_exact(prove(tmp_path, str(script)))


@pytest.mark.parametrize("bug", TORCH_BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_named_with_its_step(bug: Bug, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(with_bug(bug, TORCH_PROGRAM))
    certificate = prove(tmp_path, str(script))
    problem = certificate.problem

    assert problem is not None
    assert (bug.verdict, bug.cause, bug.resume) == (certificate.verdict, problem.cause, problem.resume)
    assert problem.step == (1 if bug.resume is None else certificate.kills[bug.resume - 1].resumed_at_step)


@pytest.mark.parametrize("example", ["hf_trainer", "lightning_trainer", "accelerate_loop"])
def test_a_framework_is_certified(example, tmp_path):
    require_exact(prove(tmp_path, str(ROOT / "examples" / f"{example}.py")))


@pytest.mark.parametrize(
    "recipe, config, more",
    [
        ("kd", "quickstart", TAUGHT),
        ("process", "process", GENERATED),
        ("answer_generation", "answer_generation", GENERATED),
        ("tool_select", "tool_select", GENERATED),
    ],
)
def test_a_trainer_is_certified(recipe, config, more, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    path = ROOT / "configs" / f"{config}.yaml"
    module = f"training.distill_{recipe}"

    require_exact(prove(tmp_path, "-m", module, "--config", str(path), *SMALLER, *more, "--output-dir"))
