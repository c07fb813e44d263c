"""A poisoned window of data: whatever the moment of a kill, the run ends as one whose data lacked that window."""

from __future__ import annotations

import json
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
def references() -> dict[int, Path]:
    return {}


@pytest.fixture
def reference(references: dict[int, Path], train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of so many ranks whose data lacked the window from the start."""

    def of(num_ranks: int) -> Path:
        if num_ranks not in references:
            output_dir = tmp_path_factory.mktemp("reference") / "run"
            ended = train(output_dir, num_ranks=num_ranks, LACKS=f"{FIRST}:{END}")
            assert {0} == {*ended.exit_codes}, ended.said(0)
            references[num_ranks] = output_dir
        return references[num_ranks]

    return of


KILLS = ["record:1", "go back:1", "restored:2", "leave out:1", f"step {BAD_STEP + 2}:2"]
"""Before the step is on record; before and in going back; between two records of the window; after it is left out."""


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
