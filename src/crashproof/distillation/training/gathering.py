"""Gather the weights of a sharded student, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from crashproof.distillation.models.deferred.tensor import DeferredTensor
from crashproof.distillation.models.lora import adapted_layers, added_weight, without_adapters
from crashproof.pytorch.ranks import Ranks

__all__ = ["GatheredWeights"]

_WHAT = "gathering the student"


class GatheredWeights:
    """The weights of a student: the main process asks for one after the other, and all others `follow` it."""

    def __init__(self, student: PreTrainedModel, ranks: Ranks) -> None:
        self._student = student
        self._ranks = ranks
        self._adapted = adapted_layers(student)
        self._shards: dict[str, Tensor] = dict(student.named_parameters(remove_duplicate=False))
        self._shards |= dict(student.named_buffers(remove_duplicate=False))
        self._newest: tuple[str, Tensor] | None = None

    def follow(self) -> None:
        """Take part until the main process has all that it needs.

        Raises:
            RankLost: another process died, or asked for nothing within the limit.
        """
        nothing: str | None = None
        while (name := self._ranks.broadcast(nothing, _WHAT)) is not None:
            self._gather(name)

    def end(self) -> None:
        """Let the others go; on the main process."""
        self._newest = None
        self._ranks.broadcast(None, _WHAT)

    def weight(self, name: str) -> Tensor:
        """One of the student's weights on the CPU; on the main process, while the others follow."""
        # What is written in several parts is asked for as often, one part after the other.
        if self._newest is None or self._newest[0] != name:
            self._newest = None
            self._newest = (name, self._gather(self._ranks.broadcast(name, _WHAT)))
        return self._newest[1]

    def deferred(self) -> dict[str, Tensor]:
        """All weights by their names in the student; each is gathered when it is written."""
        return {name: self._defer(name) for name in self._shards}

    def merged(self) -> dict[str, Tensor]:
        """Likewise of the student without its adapters, which are added to the weights that they change."""
        prefix = _prefix_of(self._student)
        adapters = {
            f"{prefix}{name}.{inner}" for name, each in self._adapted.items() for inner in _adapter_names(each)
        }
        made = {}
        for full_name in self._shards.keys() - adapters:
            name = full_name.removeprefix(prefix)
            layer_name, _, end = name.rpartition(".base_layer.")
            if layer_name in self._adapted:
                name = f"{layer_name}.{end}"
            is_changed = layer_name in self._adapted and end == "weight"
            made[name] = self._defer(full_name, self._merge(full_name, prefix, layer_name) if is_changed else None)
        return made

    def _merge(self, full_name: str, prefix: str, layer_name: str) -> Callable[[], Tensor]:
        layer = self._adapted[layer_name]

        def merge() -> Tensor:
            adapters = {name: self.weight(f"{prefix}{layer_name}.{name}") for name in _adapter_names(layer)}
            return self.weight(full_name) + added_weight(layer, adapters)

        return merge

    def _defer(self, name: str, make: Callable[[], Tensor] | None = None) -> Tensor:
        like = self._shards[name]
        without = torch.empty(like.shape, dtype=like.dtype, device="meta")
        return DeferredTensor(without, _Gathered(make=make or partial(self.weight, name)), device="meta")

    @torch.no_grad()
    def _gather(self, name: str) -> Tensor:
        shard = self._shards[name]
        with self._ranks.collective(_WHAT):
            whole = shard.full_tensor() if isinstance(shard, DTensor) else shard
        return whole.detach().cpu() if self._ranks.is_main else whole


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gathered:
    """A weight that is gathered at each call."""

    make: Callable[[], Tensor]

    def whole(self) -> Tensor:
        return self.make()

    def rows(self, first: int, last: int) -> Tensor:
        return self.make()[first:last]


def _prefix_of(student: PreTrainedModel) -> str:
    """What adapters put before the name of each weight."""
    within = without_adapters(student)
    return next((f"{name}." for name, each in student.named_modules() if each is within and name), "")


def _adapter_names(layer: torch.nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters() if not name.startswith("base_layer.")]
