"""Verify now and then that processes which train together still do the same."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from torch import nn
from torch.distributed.tensor import DTensor

from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.training.batches import StepData
from crashproof.distillation.training.training_state import Counters
from crashproof.errors import RanksDisagree
from crashproof.formatting import listing
from crashproof.pytorch.checksum import checksum_of
from crashproof.pytorch.ranks import Ranks
from crashproof.rules.agreement.running import RunningReport, ranks_astray

__all__ = ["RunningCheck"]

_MOST_STEPS = 100
"""Between two checks. One reads each weight once, and exchanges some hundred bytes."""
_HINT = (
    "Nothing was saved since, and the same command resumes before these steps. Look for failing memory on that host, "
    "and report it if it happens twice."
)


class RunningCheck:
    """Digests the samples of each step, and compares digests of samples and weights between the processes."""

    def __init__(self, ranks: Ranks, train: TrainConfig, module: nn.Module) -> None:
        """`module` is trained by all processes."""
        self._ranks = ranks
        self._batch_size = train.batch_size
        self._settings = train.model_dump_json()
        self._module = module
        self._start()

    def add(self, step_data: StepData) -> None:
        """Take in the samples that a step has learned from."""
        self._num_steps += 1
        _update(self._of_all, step_data.all_indices)
        _update(self._own, step_data.indices)
        _update(self._of_next, self._part_of_next(step_data.all_indices))

    @property
    def is_due(self) -> bool:
        """Whether there were so many steps since the last check that it is time for one."""
        return self._num_steps >= _MOST_STEPS

    def require_same(self, counters: Counters) -> None:
        """Compare what happened since the last check. Every process calls it after the same step.

        Raises:
            RanksDisagree: A process took other samples than its part, or has other weights, settings or counters;
                names the steps and the ranks.
            RankLost: Another process died, or did not respond within the limit.
        """
        if self._num_steps == 0:
            return
        reports = self._ranks.all_gather(self._report(counters), "comparing samples and weights")
        astray, did = ranks_astray(reports)
        if astray:
            steps = f"in one of the steps {counters.step - self._num_steps + 1:,} to {counters.step:,}"
            raise RanksDisagree(f"{_named(astray)} {did}, {steps}.", hint=_HINT)
        self._start()

    def _start(self) -> None:
        self._num_steps = 0
        self._of_all, self._own, self._of_next = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()

    def _report(self, counters: Counters) -> RunningReport:
        return RunningReport(
            state=f"{counters} {self._settings}",
            of_all=self._of_all.hexdigest(),
            own=self._own.hexdigest(),
            of_next=self._of_next.hexdigest(),
            weights=self._checksum_of_weights(),
        )

    def _checksum_of_weights(self) -> str:
        weights = [each for each in self._module.parameters() if each.requires_grad]
        if self._ranks.num_ranks == 1 or any(isinstance(each, DTensor) for each in weights):
            return ""
        return checksum_of(weights)

    def _part_of_next(self, all_indices: Sequence[int]) -> list[int]:
        num_ranks = self._ranks.num_ranks
        size = self._batch_size // num_ranks
        first = (self._ranks.rank + 1) % num_ranks * size
        passes = range(0, len(all_indices), self._batch_size)
        return [index for start in passes for index in all_indices[start + first : start + first + size]]


def _update(digest: hashlib._Hash, indices: Sequence[int]) -> None:
    digest.update(array("q", indices).tobytes())


def _named(ranks: Sequence[int]) -> str:
    return f"{'Rank' if len(ranks) == 1 else 'Ranks'} {listing([str(rank) for rank in ranks], most=8)}"
