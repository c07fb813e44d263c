"""`distill_kd` from a paid teacher, killed and started again: nothing is asked twice, and every bit is the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crashproof import RunReader
from crashproof.distillation.models.causal_lm import new_model, save_model
from crashproof.distillation.models.model_answers import ModelAnswers
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.text.corpus import builtin_documents
from crashproof.distillation.text.tokenizer import train_tokenizer
from crashproof.rules.spending import spending_of
from crashproof.testing import KilledRun, TeacherServer, run_and_kill

STEPS = 16
NUM_PROMPTS = 21
SETTINGS = [
    "data.max_length=48",
    "teacher.kind=api",
    "teacher.model=teacher",
    "teacher.max_tokens=6",
    "teacher.keep_truncated=true",
    "teacher.temperature=1.0",
    "teacher.ahead_steps=2",
    "teacher.concurrency=4",
    "train.batch_size=2",
    f"train.steps={STEPS}",
    "train.warmup_steps=4",
    "loss.intermediate=0",
    "loss.temperature=1",
    "progress.checkpoint_interval=3",
]
WITH_LOGPROBS = ["teacher.logprobs=5", "loss.kd=1.0", "loss.ce=0.5"]
TEXT_ALONE = ["loss.kd=0", "loss.ce=1.0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A teacher and a student that share a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(builtin_documents()[:50], vocab_size=300, folder=folder / "tokenizer")
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        model = new_model(ModelShape(d_model=16, num_layers=1, num_heads=2), tokenizer=tokenizer, max_length=64)
        save_model(model, tokenizer, folder / name, origin={"name": name})
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me of {number}: "}) + "\n" for number in range(NUM_PROMPTS)))
    return path


@pytest.fixture
def server(models):
    torch.set_num_threads(1)
    with TeacherServer(ModelAnswers(models / "teacher"), latency_seconds=0.02) as running:
        yield running


class Trainer:
    def __init__(self, server: TeacherServer, models: Path, prompts: Path, settings: list[str]) -> None:
        self.server = server
        self._arguments = [f"data.path={prompts}", f"student.path={models / 'student'}", *SETTINGS, *settings]
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "sk-made-up-for-this-test",
        }

    def command(self, output_dir: Path) -> list[str]:
        return [sys.executable, "-m", "training.distill_kd", *self._arguments, "--output-dir", str(output_dir)]

    def run(self, output_dir: Path) -> None:
        done = subprocess.run(self.command(output_dir), env=self._environment, capture_output=True, text=True)
        assert 0 == done.returncode, done.stderr

    def kill_after(self, output_dir: Path, num_lines: int) -> KilledRun:
        """Kill it once the journal of metrics has so many lines."""
        metrics = output_dir / "progress" / "metrics.jsonl"
        return run_and_kill(
            self.command(output_dir),
            when=lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= num_lines,
            environment=self._environment,
        )

    def state(self, output_dir: Path) -> dict[str, Any]:
        return torch.load(output_dir / f"checkpoint_{STEPS}.pt", weights_only=True)


def same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(WITH_LOGPROBS, id="with-logprobs"),
        pytest.param(TEXT_ALONE, id="text-alone", marks=pytest.mark.long),
    ],
)
def test_killed_twice_it_pays_once_and_ends_bit_for_bit_like_the_uninterrupted_run(
    settings, server, models, prompts, tmp_path
):
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    moments = sorted(random.Random(seed).sample(range(2, STEPS), 2))
    print(f"seed {seed}: killed after lines {moments}")
    trainer = Trainer(server, models, prompts, settings)
    trainer.run(tmp_path / "uninterrupted")
    paid_uninterrupted = server.counts.answers_computed

    kills = [trainer.kill_after(tmp_path / "killed", moment) for moment in moments]
    trainer.run(tmp_path / "killed")
    paid_killed = server.counts.answers_computed - paid_uninterrupted
    reader = RunReader.open(tmp_path / "killed")
    spending = spending_of(reader.session())
    print(f"uninterrupted {paid_uninterrupted} answers; killed {paid_killed}, {spending.requests_in_doubt} in doubt")

    assert [True, True] == [kill.was_killed for kill in kills]
    assert same_bits(trainer.state(tmp_path / "uninterrupted"), trainer.state(tmp_path / "killed"))
    assert NUM_PROMPTS == paid_uninterrupted == spending.answers
    assert paid_killed <= NUM_PROMPTS + spending.requests_in_doubt
    assert reader.session().replay_differed_at is None
    assert [] == reader.problems()


def test_a_run_whose_answers_are_all_kept_asks_nothing(server, models, prompts, tmp_path):
    trainer = Trainer(server, models, prompts, TEXT_ALONE)
    trainer.run(tmp_path / "run")
    before = server.counts.requests
    for checkpoint in (tmp_path / "run").glob("checkpoint_*.pt"):
        checkpoint.unlink()
    # Without its checkpoints the run begins anew; its answers are still there.
    command = [*trainer.command(tmp_path / "run"), "--resume", "never"]
    done = subprocess.run(command, env=trainer._environment, capture_output=True, text=True)

    assert 0 == done.returncode, done.stderr
    assert before == server.counts.requests
