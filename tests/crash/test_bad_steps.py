"""A poisoned window of data: whatever the moment of a kill, the run ends as one whose data lacked that window."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import ForkedRanks, StartedRun
from poisoned_data import NUM_SAMPLES
from safetensors.torch import load_file

from crashproof import RunReader
from crashproof.records.bad_steps import DataWindow

STEPS = 30
BAD_STEP, FIRST, END = 23, 88, 92
"""Four samples a step: the poisoned ones are those of step 23."""
SETTINGS = [
    "data.max_length=24",
    "data.on_too_long=truncate",
    "tokenizer.vocab_size=300",
    "teacher.steps=3",
    "teacher.d_model=16",
    "teacher.num_heads=2",
    "teacher.num_layers=2",
    "student.d_model=16",
    "student.num_heads=2",
    "train.batch_size=4",
    "train.limit_seconds=60",
    "train.warmup_steps=4",
    "train.learning_rate=1e-3",
    f"train.steps={STEPS}",
    "progress.checkpoint_interval=7",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little more than one epoch of the run."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    chance = random.Random(0)
    words = "a loss that is not finite or far above what is usual comes from such a window".split()  # noqa: SIM905
    lines = [
        {"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))}
        for number in range(NUM_SAMPLES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def train(ranks: ForkedRanks, data: Path) -> Any:
    def start(output_dir: Path, *overrides: str, num_ranks: int = 1, **environment: str) -> StartedRun:
        arguments = [f"data.path={data}", *SETTINGS, *overrides, "--output-dir", str(output_dir)]
        return ranks.run(arguments, num_ranks=num_ranks, prepare="poisoned_data:prepare", **environment)

    return start


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")


def assert_like(reference: Path, output_dir: Path) -> None:
    """The same weights and losses, to the bit, and nothing wrong with the records."""
    one, other = weights(reference), weights(output_dir)
    assert [] == [name for name in one if not torch.equal(one[name], other[name])]
    reader = RunReader.open(output_dir)
    lines = list(reader.history())
    assert [*range(1, STEPS + 1)] == [line.step for line in lines]
    assert [line.loss for line in RunReader.open(reference).history()] == [line.loss for line in lines]
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


@pytest.fixture(scope="module")
def references() -> dict[tuple[int, str], Path]:
    return {}


@pytest.fixture
def reference(references: dict[tuple[int, str], Path], train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of so many ranks whose data lacked the window from the start."""

    def of(num_ranks: int, strategy: str = "ddp") -> Path:
        if (num_ranks, strategy) not in references:
            output_dir = tmp_path_factory.mktemp("reference") / "run"
            overrides = f"train.strategy={strategy}"
            ended = train(output_dir, overrides, num_ranks=num_ranks, LACKS=f"{FIRST}:{END}")
            assert {0} == {*ended.exit_codes}, ended.said(0)
            references[num_ranks, strategy] = output_dir
        return references[num_ranks, strategy]

    return of


KILLS = ["record:1", "go back:1", "restored:1", "restored:2", "leave out:1", f"step {BAD_STEP + 3}:1"]
"""Before the step is on record; before and in going back, both times; between the two records; after all of it."""


@pytest.mark.parametrize(
    "num_ranks, kind, kills",
    [
        pytest.param(1, "spike", ["record:1", "restored:2", f"step {BAD_STEP + 3}:1"], id="one process, a spike"),
        pytest.param(2, "nan", ["go back:1", "leave out:1", f"step {BAD_STEP + 3}:1"], id="two ranks, NaN"),
        *(
            pytest.param(num_ranks, kind, [kill], marks=pytest.mark.long)
            for num_ranks in (1, 2)
            for kind in ("spike", "nan")
            for kill in KILLS
        ),
    ],
)
def test_the_run_ends_like_one_whose_data_lacked_the_window(
    train: Any, reference: Any, tmp_path: Path, num_ranks: int, kind: str, kills: list[str]
) -> None:
    settings = {"POISON": f"{kind}:{FIRST}:{END}"}
    output_dir = tmp_path / "run"

    killed = [
        train(output_dir, "train.on_bad_step=rollback", num_ranks=num_ranks, KILL=kill, **settings) for kill in kills
    ]
    ended = train(output_dir, "train.on_bad_step=rollback", num_ranks=num_ranks, **settings)

    assert all(-9 in each.exit_codes for each in killed), [each.exit_codes for each in killed]
    assert {0} == {*ended.exit_codes}, ended.said(0)
    assert_like(reference(num_ranks), output_dir)
    session = RunReader.open(output_dir).session()
    assert [DataWindow(FIRST, END)] == session.data_left_out
    assert {BAD_STEP} == {each.step for each in session.bad_steps}
    assert "skipped_data" == session.bad_steps[-1].action


def test_a_passing_fault_costs_a_rollback_and_leaves_nothing_out(train: Any, tmp_path: Path) -> None:
    healthy, output_dir = tmp_path / "healthy", tmp_path / "run"

    train(healthy)
    ended = train(output_dir, "train.on_bad_step=rollback", POISON=f"once:{FIRST}:{END}")

    assert [0] == ended.exit_codes, ended.said(0)
    assert_like(healthy, output_dir)
    session = RunReader.open(output_dir).session()
    transient = [each.is_transient for each in session.bad_steps]
    assert ([True], [], 1) == (transient, session.data_left_out, session.rollbacks)
    assert "Step 23 was bad, and is fine now that it was computed again from the same samples" in ended.said(0)


def test_a_run_that_was_stopped_at_a_bad_step_goes_on_by_rolling_back(
    train: Any, reference: Any, tmp_path: Path
) -> None:
    output_dir, poison = tmp_path / "run", f"nan:{FIRST}:{END}"

    stopped = train(output_dir, "train.on_bad_step=stop", POISON=poison)
    left = RunReader.open(output_dir).session()
    ended = train(output_dir, "train.on_bad_step=rollback", POISON=poison)

    assert [2] == stopped.exit_codes, stopped.said(0)
    assert "Step 23 has a non-finite loss" in stopped.said(0)
    assert (
        "It was computed from samples 88 to 91 of the order. The newest healthy checkpoint is checkpoint_21.pt"
        in (stopped.said(0))
    )
    assert ([7, 14, 21], "raised") == (sorted(left.checkpoints), left.attempts[-1].how)
    assert [0] == ended.exit_codes, ended.said(0)
    assert_like(reference(1), output_dir)
    # It was computed again by starting again.
    assert ["stopped", "skipped_data"] == [each.action for each in RunReader.open(output_dir).session().bad_steps]


def test_more_bad_steps_than_are_allowed_stop_the_run_with_the_evidence(train: Any, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"

    stopped = train(
        output_dir, "train.on_bad_step=rollback", "train.max_bad_steps=2", POISON=f"spike:{FIRST}:{END + 20}"
    )

    assert [2] == stopped.exit_codes, stopped.said(0)
    session = RunReader.open(output_dir).session()
    assert [DataWindow(FIRST, END + 4)] == session.data_left_out
    assert ["rolled_back", "skipped_data", "rolled_back", "skipped_data", "stopped"] == [
        each.action for each in session.bad_steps
    ]
    assert 4 == session.rollbacks
    assert "A larger train.max_bad_steps goes on with the same command" in stopped.said(0)


@pytest.mark.parametrize("kind", [pytest.param("spike", marks=pytest.mark.long), "nan"])
def test_a_resumed_run_skips_the_same_updates(train: Any, tmp_path: Path, kind: str) -> None:
    uninterrupted, output_dir = tmp_path / "uninterrupted", tmp_path / "run"
    settings = {"POISON": f"{kind}:{FIRST}:{END}"}

    ended = train(uninterrupted, "train.on_bad_step=skip", **settings)
    train(output_dir, "train.on_bad_step=skip", KILL=f"step {BAD_STEP + 3}:1", **settings)
    resumed = train(output_dir, "train.on_bad_step=skip", **settings)

    assert [0, 0] == [*ended.exit_codes, *resumed.exit_codes], ended.said(0)
    assert_like_but_for_nan(uninterrupted, output_dir)
    session = RunReader.open(output_dir).session()
    assert {"skipped_update"} == {each.action for each in session.bad_steps}
    assert [] == session.data_left_out
    assert all(each.recovery_tags[0] == "periodic" for each in session.checkpoints.values())
    assert not any("bad_loss" in each.recovery_tags for each in session.checkpoints.values())


def assert_like_but_for_nan(reference: Path, output_dir: Path) -> None:
    one, other = weights(reference), weights(output_dir)
    assert [] == [name for name in one if not torch.equal(one[name], other[name])]
    losses = [[line.loss for line in RunReader.open(folder).history()] for folder in (reference, output_dir)]
    assert [] == [pair for pair in zip(*losses, strict=True) if pair[0] != pair[1] and not math.isnan(pair[0])]


@pytest.mark.parametrize(
    "num_ranks", [(2, 1), pytest.param((1, 2), marks=pytest.mark.long)], ids=["2 to 1", "1 to 2"]
)
def test_another_number_of_ranks_leaves_out_the_same_samples(
    train: Any, tmp_path: Path, num_ranks: tuple[int, int]
) -> None:
    output_dir, settings = tmp_path / "run", {"POISON": f"nan:{FIRST}:{END}"}
    first, then = num_ranks

    train(output_dir, "train.on_bad_step=rollback", num_ranks=first, KILL=f"step {BAD_STEP + 3}:1", **settings)
    known = RunReader.open(output_dir).session().data_left_out
    # It need not be said again: what is left out is part of the run.
    ended = train(output_dir, num_ranks=then, **settings)

    assert [DataWindow(FIRST, END)] == known
    assert {0} == {*ended.exit_codes}, ended.said(0)
    reader = RunReader.open(output_dir)
    assert [] == [line.step for line in reader.history() if not math.isfinite(line.loss)]
    assert STEPS == reader.session().steps_completed
    if then == 1:
        # Nobody has judged the steps of the second life.
        assert "healthy_losses" not in torch.load(output_dir / f"checkpoint_{STEPS}.pt", weights_only=True)


@pytest.mark.long
def test_sharded_weights_go_back_as_well(train: Any, reference: Any, tmp_path: Path) -> None:
    output_dir, settings = tmp_path / "run", {"POISON": f"nan:{FIRST}:{END}"}
    overrides = ("train.strategy=fsdp", "train.on_bad_step=rollback")

    train(output_dir, *overrides, num_ranks=2, KILL="restored:1", **settings)
    ended = train(output_dir, *overrides, num_ranks=2, **settings)

    assert {0} == {*ended.exit_codes}, ended.said(0)
    assert_like(reference(2, "fsdp"), output_dir)
