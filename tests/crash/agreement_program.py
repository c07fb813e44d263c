"""One rank that starts the trainer again and again, each time with what a case gives to this rank.

Python and PyTorch are imported once for all cases. The test hosts the store, as `torchrun`'s agent does it; the
number of the case stands for that of the restart, which keeps the cases apart.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from crashproof.distillation.command import main
from crashproof.distillation.training.batches import StepBatches, StepData
from crashproof.distillation.training.loop import TrainingLoop

RANK = int(os.environ["RANK"])
STEP = 3
"""At which a rank goes astray."""


def take_other_samples(self: StepBatches, first_sample: int) -> StepData:
    """The part of the rank before this one, from a step on."""
    made = make_step(self, first_sample)
    if first_sample < (STEP - 1) * self.samples_per_step:
        return made
    size = self._train.batch_size // self._ranks.num_ranks
    with patch.object(self._ranks, "rank", RANK - 1):
        other = make_step(self, first_sample)
    assert size * self._train.gradient_accumulation == len(other.indices)
    return other


def flip_a_bit(self: TrainingLoop, step_data: StepData) -> None:
    """A step, and behind one of them a weight with one other bit, as failing memory makes it."""
    take_step(self, step_data)
    if self.state.counters.step == STEP:
        weight = next(each for each in self.recipe.parameters() if each.requires_grad)
        weight.detach().view(torch.int32).view(-1)[0] ^= 1


make_step, take_step = StepBatches._make, TrainingLoop._step
ASTRAY = {"samples": (StepBatches, "_make", take_other_samples), "weights": (TrainingLoop, "_step", flip_a_bit)}


@contextlib.contextmanager
def given(own: dict[str, Any]) -> Iterator[None]:
    """What this rank has of its own in a case."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, own["environment"]))
        stack.enter_context(patch.object(sys, "path", [*own["path"], *sys.path]))
        if own["astray"]:
            stack.enter_context(patch.object(*ASTRAY[own["astray"]]))
        yield


def run(number: int, case: dict[str, Any]) -> dict[str, Any]:
    """How a case ended on this rank."""
    own, said = case["ranks"][RANK], io.StringIO()
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    logging.getLogger("crashproof").setLevel(logging.NOTSET)
    begun_at = time.monotonic()
    with given(own), contextlib.redirect_stderr(said), redirected_log(said):
        code = main(own["recipe"], own["arguments"])
    return {"name": case["name"], "code": code, "said": said.getvalue(), "seconds": time.monotonic() - begun_at}


@contextlib.contextmanager
def redirected_log(said: io.StringIO) -> Iterator[None]:
    handler = logging.StreamHandler(said)
    logging.getLogger("crashproof").addHandler(handler)
    yield
    logging.getLogger("crashproof").removeHandler(handler)


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    with Path(f"{sys.argv[1]}.{RANK}").open("w") as results:
        for number, case in enumerate(cases):
            results.write(json.dumps(run(number, case)) + "\n")
            results.flush()
