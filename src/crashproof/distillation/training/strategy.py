"""Run one model on one process or on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.models.deferred.weights import DeferredWeights
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.distillation.training.sharding import shard_models
from crashproof.pytorch.own_time import OwnTime
from crashproof.pytorch.random_state import capture_random_state, restore_random_state
from crashproof.pytorch.ranks import Ranks, SingleRank
from crashproof.pytorch.step_timer import NoStepTimer, ReplicatedTimer, ShardedTimer, StepTimer

__all__ = ["Strategy", "choose_strategy", "clip_gradients", "is_sharded"]


class Strategy:
    """How the processes of a run share a recipe; this one runs it on one process alone."""

    gradient_scale = 1.0
    """The factor of a loss before its backward pass that makes gradients sums over all processes."""
    works_in_lockstep = False
    """Whether all processes must run the model together."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._module: nn.Module = recipe

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The recipe's forward pass."""
        return cast(dict[str, Tensor], self._module(batch))

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Wrap one forward and backward pass; gradients are exchanged in the last one of a step."""
        return nullcontext()

    def warm_up(self, run: Callable[[], None]) -> None:
        """Do now, before the first step, what the first pass would do differently from later ones."""

    def timer(self, own_time: OwnTime[Any]) -> StepTimer:
        """What tells this process's own work from its waits for others."""
        return NoStepTimer()


def is_sharded(name: str, ranks: Ranks) -> bool:
    """Whether a process is to hold only a part of each weight."""
    return name == "fsdp" and not isinstance(ranks, SingleRank)


def choose_strategy(
    recipe: Recipe, name: str, ranks: Ranks, device: torch.device, weights: DeferredWeights | None = None
) -> Strategy:
    """Wrap a recipe in `ddp` or `fsdp`; a process without a process group needs neither.

    For `fsdp`, its weights are still deferred; otherwise it is on its device.
    """
    if is_sharded(name, ranks):
        assert weights is not None, "what is sharded is not made whole before"
        return _Sharded(recipe, ranks, device, weights)
    return Strategy(recipe) if isinstance(ranks, SingleRank) else _Replicated(recipe, ranks)


def clip_gradients(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip the gradients to a norm, over all processes; returns the norm before, (), without synchronising."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class _Replicated(Strategy):
    """`DistributedDataParallel`: each process holds the whole model."""

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        super().__init__(recipe)
        # DDP averages gradients.
        self.gradient_scale = float(ranks.num_ranks)
        self._parallel = self._module = DistributedDataParallel(recipe, gradient_as_bucket_view=True)

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        return nullcontext() if is_last else self._parallel.no_sync()

    def timer(self, own_time: OwnTime[Any]) -> StepTimer:
        return ReplicatedTimer(self._recipe, own_time)

    def warm_up(self, run: Callable[[], None]) -> None:
        """The first backward pass sums in other buckets than later ones, and so, with three processes or more, in
        another order: a resumed run would differ in the last bits from the uninterrupted one. One pass is discarded.
        """
        with _keep_random_states():
            run()
            self._recipe.zero_grad(set_to_none=True)


class _Sharded(Strategy):
    """FSDP2: each process holds a part of every tensor, and gathers a layer's weights while it computes the layer."""

    works_in_lockstep = True

    def __init__(self, recipe: Recipe, ranks: Ranks, device: torch.device, weights: DeferredWeights) -> None:
        super().__init__(recipe)
        self.gradient_scale = float(ranks.num_ranks)
        shard_models(recipe, ranks, device, weights)

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        cast(FSDPModule, self._recipe).set_requires_gradient_sync(is_last)
        yield

    def timer(self, own_time: OwnTime[Any]) -> StepTimer:
        shards = [each for each in self._recipe.modules() if isinstance(each, FSDPModule)]
        # A hook of a compiled layer would be compiled with it.
        is_compiled = any(each._compiled_call_impl is not None for each in shards)
        return ShardedTimer([] if is_compiled else shards, own_time)


@contextmanager
def _keep_random_states() -> Iterator[None]:
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
