"""Run one model on one process or on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.models.layers import decoder_layers
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.pytorch.own_time import OwnTime
from crashproof.pytorch.random_state import capture_random_state, restore_random_state
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.step_timer import NoStepTimer, ReplicatedTimer, ShardedTimer, StepTimer

__all__ = ["Strategy", "choose_strategy", "clip_gradients", "gather_weights"]


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


def choose_strategy(recipe: Recipe, name: str, ranks: Ranks, device: torch.device) -> Strategy:
    """Wrap a recipe, on its device, in `ddp` or `fsdp`; one process needs neither."""
    if ranks.num_ranks == 1:
        return Strategy(recipe)
    return _Sharded(recipe, ranks, device) if name == "fsdp" else _Replicated(recipe, ranks)


def clip_gradients(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip the gradients to a norm, over all processes; returns the norm before, (), without synchronising."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather_weights(student: nn.Module, ranks: Ranks) -> dict[str, Tensor] | None:
    """Gather all weights on the CPU of the main process; None if each process has all of them anyway.

    Every process calls it.
    """
    # A weight that two layers share has one name here, as in the file.
    weights: dict[str, Tensor] = dict(student.named_parameters())
    if not any(isinstance(tensor, DTensor) for tensor in weights.values()):
        return None
    kept = student.state_dict().keys()
    weights |= {name: buffer for name, buffer in student.named_buffers() if name in kept}
    whole = {}
    for name, tensor in weights.items():
        # One at a time: no device has to hold all of them.
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.is_main:
            whole[name] = gathered.detach().cpu()
    return whole


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

    def __init__(self, recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
        super().__init__(recipe)
        self.gradient_scale = float(ranks.num_ranks)
        mesh = init_device_mesh(device.type, (ranks.num_ranks,))
        for layer in decoder_layers(recipe.student):
            fully_shard(layer, mesh=mesh)
        fully_shard(recipe, mesh=mesh)
        # What an evaluation calls beside the forward pass.
        register_fsdp_forward_method(recipe, "cross_entropies")
        register_fsdp_forward_method(recipe, "generate")

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
