"""Steps with tracking and without."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.device.models import random_tokens, recipe_on
from benchmarks.device.rows import Row, Verdict
from benchmarks.device.sizes import Size
from benchmarks.figures import in_unit
from benchmarks.trained_loop import trained_loop
from crashproof import training_progress_context
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.pytorch.device import compute_deterministically

__all__ = ["check"]

_WARM_UP_STEPS = 3


def check(size: Size, work: Path) -> Iterator[Row]:
    """Blocks of steps in turn; without tracking, the context is that of a process that is not the main one."""
    compute_deterministically()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(size.num_pairs + 1):
        # Each comes first as often as the other.
        for is_tracked in (pair % 2 == 0, pair % 2 == 1):
            taken = _block(size, work / f"{pair}-{is_tracked}", is_tracked=is_tracked)
            # The first pair warms up.
            if pair:
                seconds[is_tracked].append(taken)
    overheads = [(one / other - 1) * 100 for one, other in zip(seconds[True], seconds[False], strict=True)]
    on, off = median(seconds[True]), median(seconds[False])
    yield Row(
        what=f"step of {size.model.batch} x {size.model.length} tokens, tracking on / off",
        figure=f"{in_unit(on)} / {in_unit(off)}: {median(overheads):+.2f} %",
        verdict=Verdict.MEASURED,
        why=f"medians of {size.num_pairs} pairs of {size.steps_a_block} steps; single pairs "
        f"{min(overheads):+.1f} % to {max(overheads):+.1f} %. Goal: under 1 %",
        values={"on_seconds": on, "off_seconds": off, "overhead_percent": median(overheads)},
    )


def _block(size: Size, folder: Path, *, is_tracked: bool) -> float:
    """Seconds of a step, over the steps of one block, the device's work included."""
    folder.mkdir()
    steps = _WARM_UP_STEPS + size.steps_a_block
    train = TrainConfig(steps=steps, batch_size=size.model.batch, device=size.device)
    progress = ProgressConfig(checkpoint_interval=steps + 1)
    watch = _Watch(first=_WARM_UP_STEPS, last=steps, is_cuda=size.device == "cuda")
    recipe = recipe_on(torch.device(size.device), size.model)
    with (
        training_progress_context({}, folder, steps, is_main_process=is_tracked) as context,
        trained_loop(recipe, random_tokens(size.model), train, progress, context, folder) as loop,
    ):
        loop.run(watch)
    shutil.rmtree(folder)
    return (watch.moments[1] - watch.moments[0]) / size.steps_a_block


class _Watch:
    """Stands where the progress bar stands, and takes the time before and after a block."""

    def __init__(self, *, first: int, last: int, is_cuda: bool) -> None:
        self.moments: list[float] = []
        self._steps = (first, last)
        self._is_cuda = is_cuda

    def advance(self, step: int, **shown: Any) -> None:
        """A step is done, on the host."""
        if step in self._steps:
            if self._is_cuda:
                torch.cuda.synchronize()
            self.moments.append(perf_counter())
