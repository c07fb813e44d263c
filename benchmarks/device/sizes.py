"""How large the device checks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CHECKS", "SIZES", "LossSize", "ModelSize", "SaveSize", "Size", "TrainerSize"]

CHECKS = (
    "synchronisations",
    "device_tests",
    "exact_resume",
    "save_stall",
    "loss_memory",
    "one_rank",
    "step_time",
)
"""In this order; each is a module of `benchmarks.device.checks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """A Llama that is trained, and its teacher of the same shape."""

    vocabulary: int
    width: int
    num_layers: int
    num_heads: int
    length: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSize:
    """A run of `distill_kd` that is killed."""

    width: int
    num_layers: int
    num_heads: int
    length: int
    """Of samples, in tokens: attention sums over several blocks of keys only where there are several."""
    batch: int
    steps: int
    save_every: int
    kill_at: int
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSize:
    """A training state that is saved."""

    num_bytes: int
    num_saves: int
    """The first one and the steady ones."""
    before_first_seconds: float
    """From the start of a run to its first save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSize:
    """A cross-entropy over a large vocabulary."""

    vocabulary: int
    width: int
    num_tokens: int
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """All that a device decides."""

    device: str
    num_at_once: int
    """Checks side by side: one, where times are to be believed."""
    limit_seconds: float
    """Of everything."""
    limits: Mapping[str, float]
    """Seconds of each check; what is not done by then fails alone."""
    model: ModelSize
    watched_steps: int
    precisions: tuple[str, ...]
    exact: TrainerSize
    ranks: TrainerSize
    save: SaveSize
    loss: LossSize
    num_pairs: int
    steps_a_block: int


SIZES: dict[str, Size] = {
    "cuda": Size(
        device="cuda",
        num_at_once=1,
        limit_seconds=480,
        limits={
            "synchronisations": 60,
            "device_tests": 75,
            "exact_resume": 120,
            "save_stall": 150,
            "loss_memory": 60,
            "one_rank": 120,
            "step_time": 75,
        },
        model=ModelSize(vocabulary=8192, width=512, num_layers=8, num_heads=8, length=512, batch=8),
        watched_steps=30,
        precisions=("bfloat16", "float16"),
        exact=TrainerSize(
            width=256,
            num_layers=4,
            num_heads=4,
            length=512,
            batch=8,
            steps=240,
            save_every=40,
            kill_at=110,
            num_samples=512,
        ),
        ranks=TrainerSize(
            width=256,
            num_layers=4,
            num_heads=4,
            length=512,
            batch=8,
            steps=120,
            save_every=30,
            kill_at=70,
            num_samples=256,
        ),
        save=SaveSize(num_bytes=2_000_000_000, num_saves=4, before_first_seconds=3.0),
        loss=LossSize(vocabulary=128_000, width=4096, num_tokens=8192, repeats=5),
        num_pairs=6,
        steps_a_block=60,
    ),
    "cpu": Size(
        device="cpu",
        num_at_once=2,
        limit_seconds=1200,
        limits=dict.fromkeys(CHECKS, 600.0),
        model=ModelSize(vocabulary=128, width=32, num_layers=1, num_heads=2, length=16, batch=2),
        watched_steps=6,
        precisions=("bfloat16", "float16"),
        exact=TrainerSize(
            width=16,
            num_layers=1,
            num_heads=2,
            length=24,
            batch=2,
            steps=60,
            save_every=10,
            kill_at=15,
            num_samples=24,
        ),
        ranks=TrainerSize(
            width=16,
            num_layers=1,
            num_heads=2,
            length=24,
            batch=2,
            steps=60,
            save_every=10,
            kill_at=15,
            num_samples=24,
        ),
        save=SaveSize(num_bytes=4_000_000, num_saves=3, before_first_seconds=0.1),
        loss=LossSize(vocabulary=4096, width=32, num_tokens=512, repeats=2),
        num_pairs=2,
        steps_a_block=6,
    ),
}
"""By device. `cpu` is as small as the same code can be: its figures say nothing."""
