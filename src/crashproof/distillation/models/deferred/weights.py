"""Weights that are not in memory yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from crashproof.distillation.models.deferred.files import ReadBytes
from crashproof.distillation.models.deferred.tensor import AbsentTensor, CannotDefer, DeferredTensor, Source

__all__ = ["DeferredWeights", "fill_shards", "hold_weights", "is_in_memory"]


class DeferredWeights:
    """Where each weight of some models comes from; in the models themselves, they are on the meta device."""

    def __init__(self) -> None:
        self.read = ReadBytes()
        """Of the files of the models."""
        self.unproven: list[tuple[Path, PreTrainedModel]] = []
        """Models that have not computed anything yet, with the folders that they come from."""
        self._sources: dict[nn.Parameter, Source] = {}

    def defer(self, module: nn.Module) -> None:
        """Put a module's parameters on the meta device; its buffers are filled.

        Raises:
            CannotDefer: a parameter or a buffer is not drawn as a whole.
        """
        for each in module.modules():
            for name, buffer in list(each.named_buffers(recurse=False)):
                if isinstance(buffer, AbsentTensor):
                    setattr(each, name, buffer.find_source().whole())
        _replace_parameters(module, self._defer)

    def take(self, module: nn.Module) -> dict[str, Source]:
        """The sources of a module's parameters by name, no longer kept here."""
        return {name: self._sources.pop(parameter) for name, parameter in module.named_parameters()}

    def _defer(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter in self._sources:
            return parameter
        if parameter.is_meta:
            raise CannotDefer("a weight has lost its numbers")
        source = _source_of(parameter)
        like = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        replaced = nn.Parameter(like, requires_grad=parameter.requires_grad)
        self._sources[replaced] = source
        return replaced


def hold_weights(model: nn.Module) -> None:
    """Let the weights of a model pass for absent, though they are in memory."""

    def hold(parameter: nn.Parameter) -> nn.Parameter:
        like = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        held = DeferredTensor(like, _source_of(parameter))
        return nn.Parameter(held, requires_grad=parameter.requires_grad)

    _replace_parameters(model, hold)


def is_in_memory(model: nn.Module) -> bool:
    """Whether a model can compute."""
    return not any(each.is_meta or isinstance(each, AbsentTensor) for each in model.parameters())


@torch.no_grad()
def fill_shards(module: nn.Module, sources: dict[str, Source], device: torch.device) -> None:
    """Give a sharded module memory on a device, and fill this process's part of each weight.

    `sources` is emptied on the way: what was held in memory is given back.

    Raises:
        ConfigError: a file cannot be read any more.
    """
    buffers = {name: each.clone() for name, each in module.named_buffers(remove_duplicate=False)}
    module.to_empty(device=device)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        buffer.copy_(buffers[name])
    for name, parameter in module.named_parameters():
        _fill_shard(parameter, sources.pop(name))


def _fill_shard(parameter: Tensor, source: Source) -> None:
    assert isinstance(parameter, DTensor), "the module is sharded"
    assert parameter.placements == (Shard(0),), "by rows, as fully_shard does it"
    own, mesh = parameter.to_local(), parameter.device_mesh
    if own.numel():
        first = mesh.get_local_rank() * math.ceil(len(parameter) / mesh.size())
        own.copy_(source.rows(first, first + len(own)))


def _replace_parameters(module: nn.Module, replace: Callable[[nn.Parameter], nn.Parameter]) -> None:
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for each in module.modules():
        for name, parameter in list(each.named_parameters(recurse=False)):
            # A weight that two layers share stays one.
            if parameter not in replaced:
                replaced[parameter] = replace(parameter)
            setattr(each, name, replaced[parameter])


def _source_of(parameter: Tensor) -> Source:
    return parameter.find_source() if isinstance(parameter, AbsentTensor) else _Held(tensor=parameter.detach())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A parameter that is in memory."""

    tensor: Tensor

    def whole(self) -> Tensor:
        return self.tensor

    def rows(self, first: int, last: int) -> Tensor:
        return self.tensor[first:last]
