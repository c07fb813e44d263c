"""What a student gains from its teacher."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from statistics import mean, stdev

from benchmarks.figures import Section
from crashproof import RunReader
from crashproof.distillation.command import main as train
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.training.capture import CaptureSettings, capture_logits
from crashproof.pytorch.interrupts import Interrupts

__all__ = ["measure"]

_CONFIG = Path("configs/quickstart.yaml")
_STEPS = 200
_SEEDS = (0, 1, 2)
_TOP_K = 64
_COMMON = [
    "data.held_out=0.1",
    "teacher.steps=600",
    "train.device=cpu",
    f"train.steps={_STEPS}",
    f"progress.eval_every={_STEPS}",
    f"progress.checkpoint_interval={_STEPS}",
]
_VARIANTS = {
    "cross-entropy alone": ["loss.kd=0", "loss.ce=1", "loss.intermediate=0"],
    "+ kd": ["loss.kd=1", "loss.ce=0.5", "loss.intermediate=0"],
    "+ kd, intermediate": ["loss.kd=1", "loss.ce=0.5", "loss.intermediate=0.1"],
    f"+ kd of the top {_TOP_K}": ["loss.kd=1", "loss.ce=0.5", "loss.intermediate=0"],
    "kd alone": ["loss.kd=1", "loss.ce=0", "loss.intermediate=0"],
}


def measure(work: Path, *, is_full: bool) -> Section:
    """Held-out perplexity of students that learn in different ways, for the same number of steps."""
    first = work / "first"
    teacher = _trained(first, [*_VARIANTS["+ kd"], "train.steps=1", "progress.eval_every=1"], seed=0)
    assert teacher is not None
    rows = [_row(name, overrides, work, first / "cache") for name, overrides in _VARIANTS.items()]
    return Section(
        title="What a student gains from its teacher",
        columns=["loss", "held-out perplexity", *(f"seed {seed}" for seed in _SEEDS), "against cross-entropy alone"],
        rows=_with_gain(rows),
        notes=[
            f"`{_CONFIG}` with {', '.join(f'`{each}`' for each in _COMMON[:2])}: {_STEPS} steps each, the same data "
            f"order and teacher; mean and standard deviation over {len(_SEEDS)} seeds of the student."
        ],
    )


def _row(name: str, overrides: list[str], work: Path, cache: Path) -> tuple[str, list[float]]:
    found = []
    for seed in _SEEDS:
        folder = work / f"{name.replace(' ', '_')}_{seed}"
        shutil.copytree(cache, folder / "cache")
        more = _captured(work, cache) if str(_TOP_K) in name else []
        found.append(_trained(folder, [*overrides, *more], seed=seed))
        shutil.rmtree(folder)
    return name, found


def _trained(folder: Path, overrides: list[str], *, seed: int) -> float:
    words = [*_COMMON, *overrides, f"train.seed={seed}"]
    code = train("kd", ["--config", str(_CONFIG), *words, "--output-dir", str(folder)])
    assert code == 0, f"the trainer ended with {code}"
    evaluations = RunReader.open(folder).session().evaluations
    return float(evaluations[-1].results["perplexity"])


def _captured(work: Path, cache: Path) -> list[str]:
    """Logits of the teacher in `cache`, captured once."""
    folder = work / "logits"
    if not folder.exists():
        shutil.copytree(cache, folder / "cache")
        config = load_config(KdConfig, [_CONFIG], [*_COMMON, "loss.intermediate=0"])
        settings = CaptureSettings(
            top_k=_TOP_K, temperature=config.loss.temperature, shard_tokens=1 << 18, batch_size=8
        )
        capture_logits(config, settings, folder, interrupts=Interrupts())
    return ["teacher.kind=logits", f"teacher.path={folder}"]


def _with_gain(rows: list[tuple[str, list[float]]]) -> list[list[str]]:
    base = mean(math.log(each) for each in rows[0][1])
    return [
        [
            name,
            f"{mean(found):.1f} ± {stdev(found):.1f}",
            *(f"{each:.1f}" for each in found),
            f"{mean(math.log(each) for each in found) - base:+.3f} nats",
        ]
        for name, found in rows
    ]
