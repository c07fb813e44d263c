"""One model on one process or on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.models.layers import decoder_layers
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.pytorch.random_state import capture_random_state, restore_random_state
from crashproof.pytorch.ranks import Ranks

__all__ = ["Strategy", "choose_strategy", "clip_gradients", "gather_weights"]


class Strategy(Protocol):
    """How the processes of a run share one recipe."""

    gradient_scale: float
    """What a loss is multiplied by before its backward pass, so that gradients are sums over all processes."""
    works_in_lockstep: bool
    """Whether one process cannot run the model without the others."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The recipe's forward pass."""
        ...

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Around a forward and backward pass whose gradients are exchanged with its step's last one."""
        ...

    def settle(self, run: Callable[[], None]) -> None:
        """Before the first step: whatever the first pass does otherwise than later ones, do it now."""
        ...


def choose_strategy(recipe: Recipe, name: str, ranks: Ranks, device: torch.device) -> Strategy:
    """`ddp` or `fsdp` on many processes; on one, neither is needed. The recipe is on its device."""
    if ranks.num_ranks == 1:
        return _OneProcess(recipe)
    return _Sharded(recipe, ranks, device) if name == "fsdp" else _Replicated(recipe, ranks)


def clip_gradients(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip the gradients to a norm, over all processes; returns the norm before, (), without waiting for it."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather_weights(student: nn.Module, ranks: Ranks) -> dict[str, Tensor] | None:
    """All weights on the CPU of the main process, where each process has only parts of them; else None.

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
        # One at a time: no device needs room for all of them.
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.is_main:
            whole[name] = gathered.detach().cpu()
    return whole


class _OneProcess:
    gradient_scale = 1.0
    works_in_lockstep = False

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self._recipe(batch))

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def settle(self, run: Callable[[], None]) -> None:
        return


class _Replicated:
    """`DistributedDataParallel`: each process holds the whole model."""

    works_in_lockstep = False

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        self._recipe = recipe
        # It averages.
        self.gradient_scale = float(ranks.num_ranks)
        self._module = DistributedDataParallel(recipe, gradient_as_bucket_view=True)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self._module(batch))

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        return nullcontext() if is_last else self._module.no_sync()

    def settle(self, run: Callable[[], None]) -> None:
        """The first backward pass sums in other buckets than later ones, and so, with three processes or more, in
        another order: a resumed run would differ from the unbroken one in the last bits. So one pass is thrown away.
        """
        with _random_states_kept():
            run()
            self._recipe.zero_grad(set_to_none=True)


class _Sharded:
    """FSDP2: each process holds a part of every tensor, and has a layer's whole weights while it computes it."""

    works_in_lockstep = True

    def __init__(self, recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
        self._recipe = recipe
        self.gradient_scale = float(ranks.num_ranks)
        mesh = init_device_mesh(device.type, (ranks.num_ranks,))
        for layer in decoder_layers(recipe.student):
            fully_shard(layer, mesh=mesh)
        fully_shard(recipe, mesh=mesh)
        # What an evaluation calls beside the forward pass.
        register_fsdp_forward_method(recipe, "cross_entropies")
        register_fsdp_forward_method(recipe, "generate")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self._recipe(batch))

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        cast(FSDPModule, self._recipe).set_requires_gradient_sync(is_last)
        yield

    def settle(self, run: Callable[[], None]) -> None:
        return


@contextmanager
def _random_states_kept() -> Iterator[None]:
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
