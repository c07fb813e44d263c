"""The trainer's loop, put together for a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from crashproof.distillation.data.text_data import TrainingData
from crashproof.distillation.models.layers import prepare_layers
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.training.batches import StepBatches
from crashproof.distillation.training.loop import TrainingLoop, new_state
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.strategy import choose_strategy
from crashproof.pytorch.device import choose_device
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import SingleRank
from crashproof.tracking.context import TrainingProgressContext

__all__ = ["StepTimes", "trained_loop"]


class StepTimes:
    """Stands where the progress bar stands, and notes when each step was done."""

    def __init__(self) -> None:
        self.moments = [perf_counter()]
        self.cpu_moments = [process_time()]

    def advance(self, step: int, **shown: Any) -> None:
        """A step is done."""
        self.moments.append(perf_counter())
        self.cpu_moments.append(process_time())


@contextmanager
def trained_loop(
    recipe: Recipe,
    data: TrainingData,
    train: TrainConfig,
    progress: ProgressConfig,
    context: TrainingProgressContext,
    folder: Path,
) -> Iterator[TrainingLoop]:
    """A loop of one process, at its beginning; the recipe is on the device that `train` names."""
    device, ranks = choose_device(train.device, train.precision), SingleRank()
    prepare_layers(recipe.student, train, device.device)
    state = new_state(recipe, train, device, ranks)
    batches = StepBatches(data, train, ranks, first_sample=0, ahead_steps=2)
    saver = CheckpointSaver(state, context, folder, ranks, settings=progress)
    try:
        yield TrainingLoop(
            recipe=recipe,
            strategy=choose_strategy(recipe, train.strategy, ranks, device.device),
            batches=batches,
            state=state,
            saver=saver,
            evaluator=None,
            train=train,
            progress=progress,
            device=device,
            context=context,
            interrupts=Interrupts(),
        )
    finally:
        saver.close()
        batches.close()
