"""A rank of a trainer whose data have a poisoned window, or lack it; called in a forked rank before it trains.

`POISON` is `kind:first:end`: steps with a sample at these positions of the order have a loss of NaN (`nan`), or forty
times what it would be (`spike`); of kind `once` a spike is one at the first time only. `LACKS` is `first:end`: the
order of the samples has no such positions. `KILL` is a moment at which all ranks are killed.
"""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

from crashproof.distillation.recipes.kd import KdRecipe
from crashproof.distillation.training.loop import TrainingLoop
from crashproof.distillation.training.training_run import TrainingRun
from crashproof.distillation.training.training_state import TrainingState
from crashproof.pytorch.sampler import DataOrder
from crashproof.tracking.bad_steps.recorder import BadStepRecorder

NUM_SAMPLES = 132
moments: Counter[str] = Counter()
is_poisoned = False


def come_to(moment: str) -> None:
    """Die here if this is the moment; the ranks of a run are children of one process, which sees them all end."""
    moments[moment] += 1
    if os.environ.get("KILL") == f"{moment}:{moments[moment]}":
        os.kill(os.getpid(), signal.SIGKILL)


def before(moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        come_to(moment)
        return function(*arguments, **named)

    return call


def prepare() -> None:
    """Poison the data of this process, and have it die at its moment."""
    kind, first, end = os.environ.get("POISON", "none:0:0").split(":")
    poisoned = set(DataOrder(num_samples=NUM_SAMPLES, seed=0).indices(int(first), int(end) - int(first)))
    if "LACKS" in os.environ:
        lack(*map(int, os.environ["LACKS"].split(":")))
    forward, accumulate = KdRecipe.forward, TrainingLoop._accumulate_gradients

    def of_step(loop: TrainingLoop, step_data: Any) -> Any:
        global is_poisoned
        come_to(f"step {loop.state.counters.step + 1}")
        is_poisoned = bool(poisoned & set(step_data.all_indices))
        moments["poisoned"] += is_poisoned
        return accumulate(loop, step_data)

    def of_batch(recipe: KdRecipe, batch: Any) -> Any:
        sums = forward(recipe, batch)
        if not is_poisoned or (kind == "once" and moments["poisoned"] > 1):
            return sums
        return {name: value * (math.nan if kind == "nan" else 40.0) for name, value in sums.items()}

    TrainingLoop._accumulate_gradients = of_step  # type: ignore[method-assign]
    KdRecipe.forward = of_batch  # type: ignore[method-assign]
    TrainingRun._go_back = before("go back", TrainingRun._go_back)  # type: ignore[method-assign]
    BadStepRecorder.record = before("record", BadStepRecorder.record)  # type: ignore[method-assign]
    BadStepRecorder.leave_out = before("leave out", BadStepRecorder.leave_out)  # type: ignore[method-assign]
    TrainingState._restore_random = before("restored", TrainingState._restore_random)  # type: ignore[method-assign]


def lack(first: int, end: int) -> None:
    """Let the order of samples have no such positions."""
    indices = DataOrder.indices

    def shifted(order: DataOrder, position: int, count: int) -> list[int]:
        places = [place if place < first else place + end - first for place in range(position, position + count)]
        return [index for place in places for index in indices(order, place, 1)]

    DataOrder.indices = shifted  # type: ignore[method-assign]
