"""Each recipe's ready config, killed three times, ends bit for bit like the uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crashproof import RunReader
from crashproof.testing import run_and_kill

ROOT = Path(__file__).parents[2]
STEPS = 14
SMALLER = [
    f"train.steps={STEPS}",
    "train.batch_size=4",
    "train.gradient_accumulation=2",
    "train.warmup_steps=3",
    "data.samples=60",
    "student.d_model=32",
    "student.num_layers=1",
    "progress.checkpoint_interval=3",
    "progress.eval_every=8",
]
COMPONENTS = {
    "process": {"json_validity_loss", "tool_selection_loss", "integration_loss"},
    "answer_generation": {"generation_loss", "answer_quality_loss"},
    "tool_select": {"tool_selection_loss", "argument_synthesis_loss"},
}
OPTIONAL = {"process": {"kd", "ce"}, "answer_generation": set(), "tool_select": set()}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(recipe: str, output_dir: Path, overrides: list[str]) -> list[str]:
    config = ROOT / "configs" / f"{recipe}.yaml"
    start = [sys.executable, "-m", f"training.distill_{recipe}", "--config", str(config)]
    return [*start, *overrides, "--output-dir", str(output_dir)]


def state_at_the_end(output_dir: Path, steps: int) -> dict[str, Any]:
    return dict(torch.load(output_dir / f"checkpoint_{steps}.pt", weights_only=True))


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Every place where two training states are not the same bits."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [found for key in one for found in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)):
        return [
            found
            for key, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{name}.{key}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def prove(recipe: str, tmp_path: Path, overrides: list[str], steps: int) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    moments = sorted(random.Random(seed).sample(range(2, steps - 1), 3))
    print(f"{recipe}, seed {seed}: killed after steps {moments}")
    reference, broken = tmp_path / "reference", tmp_path / "broken"
    subprocess.run(command(recipe, reference, overrides), check=True, env=ENVIRONMENT, capture_output=True)
    metrics = broken / "progress" / "metrics.jsonl"

    codes = []
    for moment in moments:
        before = RunReader.open(broken).session().steps_completed if metrics.exists() else 0

        def has_come(moment: int = moment, before: int = before) -> bool:
            # The journal holds each step that was acknowledged, those computed again too.
            return metrics.exists() and any(
                f'"step":{step},' in metrics.read_text() for step in range(max(moment, before), steps + 1)
            )

        killed = run_and_kill(command(recipe, broken, overrides), when=has_come, environment=ENVIRONMENT)
        codes.append(killed.return_code)
    subprocess.run(command(recipe, broken, overrides), check=True, env=ENVIRONMENT, capture_output=True)

    assert {-signal.SIGKILL} == set(codes)
    assert [] == differences(state_at_the_end(reference, steps), state_at_the_end(broken, steps))
    reader = RunReader.open(broken)
    history = list(reader.history())
    assert list(range(1, steps + 1)) == [line.step for line in history]
    assert [line.loss for line in RunReader.open(reference).history()] == [line.loss for line in history]
    named = set(history[-1].loss_components)
    assert COMPONENTS[recipe] <= named <= COMPONENTS[recipe] | OPTIONAL[recipe]
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("answer_generation", marks=pytest.mark.long),
        pytest.param("process", marks=pytest.mark.long),
        "tool_select",
    ],
)
def test_killed_three_times_a_recipe_ends_like_the_uninterrupted_run(recipe: str, tmp_path: Path) -> None:
    prove(recipe, tmp_path, SMALLER, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("recipe", sorted(COMPONENTS))
def test_the_full_ready_config_killed_three_times_ends_like_the_uninterrupted_run(
    recipe: str, tmp_path: Path
) -> None:
    prove(recipe, tmp_path, ["train.steps=60", "progress.checkpoint_interval=10"], 60)
