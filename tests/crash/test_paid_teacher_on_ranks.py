"""A paid teacher of several ranks: nothing is paid for twice, all end alike, and every bit is the same."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from forked_ranks import ForkedRanks, StartedRun, wait_until
from safetensors.torch import load_file

from crashproof import RunReader
from crashproof.distillation.models.causal_lm import new_model, save_model
from crashproof.distillation.models.model_answers import ModelAnswers
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.text.corpus import builtin_documents
from crashproof.distillation.text.tokenizer import train_tokenizer
from crashproof.rules.spending import spending_of
from crashproof.testing import TeacherServer

STEPS = 8
NUM_PROMPTS = 21
SETTINGS = [
    "data.max_length=48",
    "teacher.kind=api",
    "teacher.model=teacher",
    "teacher.max_tokens=6",
    "teacher.keep_truncated=true",
    "teacher.temperature=1.0",
    "teacher.ahead_steps=2",
    "teacher.logprobs=5",
    "train.batch_size=4",
    "train.warmup_steps=4",
    "train.limit_seconds=60",
    "loss.kd=1.0",
    "loss.ce=0.5",
    "loss.intermediate=0",
    "loss.temperature=1",
    "progress.checkpoint_interval=3",
]
PRICES = "as_of: 2026-01-01\nmodels: {teacher: {input: 20, cached_input: 10, output: 120}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student that share a tokenizer, prompts, and prices."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = train_tokenizer(builtin_documents()[:50], vocab_size=300, folder=folder / "tokenizer")
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        model = new_model(ModelShape(d_model=16, num_layers=1, num_heads=2), tokenizer=tokenizer, max_length=64)
        save_model(model, tokenizer, folder / name, origin={"name": name})
    lines = [json.dumps({"prompt": f"Tell me of {number}: "}) for number in range(NUM_PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prices.yaml").write_text(PRICES)
    return folder


class Trainer:
    """Starts one config on ranks, with teachers at one address."""

    def __init__(self, ranks: ForkedRanks, folder: Path) -> None:
        self._ranks = ranks
        self._folder = folder
        self._port = 0
        self.answers = ModelAnswers(folder / "teacher")
        torch.set_num_threads(1)

    def teacher(self, **settings: object) -> TeacherServer:
        """A server at the address of those before, for the address is part of a run."""
        return TeacherServer(self.answers, **{"latency_seconds": 0.02, "port": self._port, **settings})  # type: ignore[arg-type]

    def start(
        self, server: TeacherServer, output_dir: Path, *overrides: str, steps: int = STEPS, num_ranks: int = 2
    ) -> StartedRun:
        self._port = int(server.base_url.rsplit(":", 1)[1].split("/")[0])
        inputs = [f"data.path={self._folder / 'prompts.jsonl'}", f"student.path={self._folder / 'student'}"]
        arguments = [*inputs, *SETTINGS, f"train.steps={steps}", *overrides, "--output-dir", str(output_dir)]
        return self._ranks.start(
            arguments, num_ranks=num_ranks, OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY="sk-made-up-for-this-test"
        )

    def run(self, server: TeacherServer, output_dir: Path, *overrides: str, num_ranks: int = 2) -> StartedRun:
        return self.end(self.start(server, output_dir, *overrides, num_ranks=num_ranks))

    def end(self, run: StartedRun) -> StartedRun:
        return self._ranks.end(run)


@pytest.fixture(scope="module")
def trainer(ranks: ForkedRanks, folder: Path) -> Trainer:
    return Trainer(ranks, folder)


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def uninterrupted(
    request: pytest.FixtureRequest, trainer: Trainer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    output_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    with trainer.teacher() as server:
        ended = trainer.run(server, output_dir, f"train.strategy={request.param}")
    assert [0, 0] == ended.exit_codes, ended.said(0) + ended.said(1)
    assert NUM_PROMPTS == server.counts.answers_computed
    return request.param, output_dir


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")


def assert_ends_like(reference: Path, output_dir: Path, resumed: StartedRun, *, paid: int) -> None:
    """The run that was killed and resumed: the same bits, and no answer bought twice beyond what was in doubt."""
    reader = RunReader.open(output_dir)
    spending = spending_of(reader.session())
    print(f"{paid} answers, {spending.requests_in_doubt} in doubt")
    assert [0, 0] == resumed.exit_codes, resumed.said(0) + resumed.said(1)
    assert_same(weights(reference), weights(output_dir))
    assert NUM_PROMPTS == spending.answers
    assert paid <= NUM_PROMPTS + spending.requests_in_doubt
    assert [line.loss for line in RunReader.open(reference).history()] == [line.loss for line in reader.history()]
    assert reader.session().replay_differed_at is None
    assert [] == reader.problems()


def errors(run: StartedRun) -> list[str]:
    """The errors that the ranks report, in the order of the ranks."""
    said = [line for rank in range(len(run.pids)) for line in run.said(rank).splitlines()]
    return [line.removeprefix("kd: ") for line in said if line.startswith("kd: ") and " steps/s" not in line]


def error_of(run: StartedRun) -> str:
    """That of rank 0, which all others name."""
    own, *others = errors(run)
    assert [True] * (len(run.pids) - 1) == [each.startswith("Rank 0 failed") and own in each for each in others]
    return own


def num_updates(output_dir: Path) -> int:
    metrics = output_dir / "progress" / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [] == [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize(
    "uninterrupted", [pytest.param("ddp", marks=pytest.mark.long), "fsdp"], indirect=["uninterrupted"]
)
def test_a_rank_that_is_killed_while_all_wait_for_the_teacher_costs_nothing(
    uninterrupted: tuple[str, Path], trainer: Trainer, tmp_path: Path
) -> None:
    strategy, reference = uninterrupted
    with trainer.teacher(latency_seconds=6.0) as slow:
        waiting = trainer.start(slow, tmp_path, f"train.strategy={strategy}", "train.limit_seconds=3")
        wait_until(lambda: slow.counts.answers_computed > 0)
        # Longer than a rank may wait for another: rank 1 still waits, for the teacher.
        time.sleep(4.5)
        waiting.kill(1)
        trainer.end(waiting)
    with trainer.teacher() as server:
        resumed = trainer.run(server, tmp_path, f"train.strategy={strategy}")

    assert [75, -signal.SIGKILL] == waiting.exit_codes, waiting.said(0)
    assert re.search(r"Lost rank 1 \(.*, pid \d+\) while waiting for the teacher", waiting.said(0))
    assert_ends_like(reference, tmp_path, resumed, paid=slow.counts.answers_computed + server.counts.answers_computed)


@pytest.mark.long
@pytest.mark.parametrize("uninterrupted", ["ddp", "fsdp"], indirect=["uninterrupted"])
@pytest.mark.parametrize("killed", [0, 1], ids=["the-rank-that-asks", "another-rank"])
@pytest.mark.parametrize("moment", ["asking", "saving"])
def test_a_rank_that_is_killed_with_requests_under_way_costs_at_most_what_is_in_doubt(
    uninterrupted: tuple[str, Path], killed: int, moment: str, trainer: Trainer, tmp_path: Path
) -> None:
    strategy, reference = uninterrupted

    def is_now() -> bool:
        if moment == "asking":
            return num_updates(tmp_path) > 3
        return bool(list(tmp_path.glob(".checkpoint_3*")))

    with trainer.teacher(latency_seconds=0.1) as server:
        asking = trainer.start(server, tmp_path, f"train.strategy={strategy}")
        wait_until(is_now)
        asking.kill(killed)
        trainer.end(asking)
        resumed = trainer.run(server, tmp_path, f"train.strategy={strategy}")

    codes = [75, 75]
    codes[killed] = -signal.SIGKILL
    assert codes == asking.exit_codes, asking.said(1 - killed)
    assert_ends_like(reference, tmp_path, resumed, paid=server.counts.answers_computed)


@pytest.mark.long
@pytest.mark.parametrize("uninterrupted", ["ddp", "fsdp"], indirect=["uninterrupted"])
def test_two_ranks_learn_what_one_process_learns_from_the_same_answers(
    uninterrupted: tuple[str, Path], trainer: Trainer, tmp_path: Path
) -> None:
    _, together = uninterrupted
    with trainer.teacher() as server:
        alone = trainer.run(server, tmp_path, num_ranks=1)

    assert [0] == alone.exit_codes, alone.said(0)
    for one, other in zip(RunReader.open(tmp_path).history(), RunReader.open(together).history(), strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-6)
        assert (one.samples_processed, one.tokens_processed) == (other.samples_processed, other.tokens_processed)
    of_together = weights(together)
    for name, weight in weights(tmp_path).items():
        torch.testing.assert_close(of_together[name], weight, rtol=0, atol=1e-6)


@pytest.mark.long
def test_accumulation_and_three_ranks_learn_the_same(trainer: Trainer, tmp_path: Path) -> None:
    settings = ["train.gradient_accumulation=2", "train.batch_size=3"]
    with trainer.teacher() as server:
        alone = trainer.run(server, tmp_path / "alone", *settings, num_ranks=1)
        together = trainer.run(server, tmp_path / "together", *settings, num_ranks=3)

    assert [[0], [0, 0, 0]] == [alone.exit_codes, together.exit_codes], together.said(0)
    lines = [RunReader.open(tmp_path / name).history() for name in ("alone", "together")]
    assert [line.loss for line in lines[0]] == pytest.approx([line.loss for line in lines[1]], abs=1e-6)
    assert [line.tokens_processed for line in lines[0]] == [line.tokens_processed for line in lines[1]]


@pytest.mark.long
def test_ranks_share_their_answers_with_other_runs_through_a_store(trainer: Trainer, tmp_path: Path) -> None:
    store = f"teacher.store=sqlite:///{tmp_path / 'answers.db'}"
    with trainer.teacher() as server:
        ended = [trainer.run(server, tmp_path / name, store) for name in ("one", "other")]

    assert [[0, 0], [0, 0]] == [each.exit_codes for each in ended], ended[0].said(0) + ended[1].said(0)
    assert NUM_PROMPTS == server.counts.answers_computed
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_a_teacher_that_refuses_ends_all_ranks_alike_with_one_reason(trainer: Trainer, tmp_path: Path) -> None:
    with trainer.teacher(models=("another",)) as server:
        ended = trainer.run(server, tmp_path / "run")
    reader = RunReader.open(tmp_path / "run")

    assert [2, 2] == ended.exit_codes
    error = error_of(ended)
    assert "refused the request: HTTP 404: The model 'teacher' does not exist" in error
    assert ["raised"] == [attempt.how for attempt in reader.session().attempts]


@pytest.mark.long
def test_a_teacher_that_cannot_be_opened_ends_all_ranks_alike(trainer: Trainer, tmp_path: Path) -> None:
    with trainer.teacher() as server:
        ended = trainer.run(server, tmp_path / "run", "teacher.budget=5")

    assert [2, 2] == ended.exit_codes
    error = error_of(ended)
    assert "has no price for the model 'teacher'" in error


@pytest.mark.long
def test_an_exhausted_budget_saves_what_is_trained_and_ends_all_ranks_alike(
    trainer: Trainer, folder: Path, tmp_path: Path
) -> None:
    prices = f"teacher.prices={folder / 'prices.yaml'}"
    with trainer.teacher() as server:
        stopped = trainer.run(server, tmp_path / "run", prices, "teacher.budget=0.013")
        session = RunReader.open(tmp_path / "run").session()
        resumed = trainer.run(server, tmp_path / "run", prices, "teacher.budget=1")

    assert [2, 2] == stopped.exit_codes
    error = error_of(stopped)
    assert "The budget of $0.013 does not allow" in error
    assert 0 < session.steps_completed == session.last_checkpoint_step < STEPS
    assert [0, 0] == resumed.exit_codes, resumed.said(0)
    assert NUM_PROMPTS == server.counts.answers_computed


@pytest.mark.long
def test_a_teacher_that_stays_away_asks_all_ranks_to_be_started_again(trainer: Trainer, tmp_path: Path) -> None:
    with trainer.teacher() as server:
        trainer.run(server, tmp_path / "run", "train.steps=2", "train.schedule_steps=8")
    ended = trainer.run(server, tmp_path / "run", "train.schedule_steps=8", "teacher.attempts=2")

    assert [75, 75] == ended.exit_codes
    error = error_of(ended)
    assert "no response after 2 attempts" in error


@pytest.mark.long
def test_any_rank_that_is_asked_to_stop_ends_the_wait_of_all_and_what_was_asked_is_kept(
    trainer: Trainer, tmp_path: Path
) -> None:
    with trainer.teacher(latency_seconds=3.0) as server:
        waiting = trainer.start(server, tmp_path / "run")
        wait_until(lambda: server.counts.answers_computed > 0)
        waiting.kill(1, signal.SIGTERM)
        trainer.end(waiting)
        spending = spending_of(RunReader.open(tmp_path / "run").session())

    assert [75, 75] == waiting.exit_codes, waiting.said(0)
    assert ["preempted"] == [attempt.how for attempt in RunReader.open(tmp_path / "run").session().attempts]
    assert (server.counts.answers_computed, 0) == (spending.answers, spending.requests_in_doubt)
