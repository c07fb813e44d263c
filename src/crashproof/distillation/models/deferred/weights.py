"""Weights that are not in memory yet."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from crashproof.distillation.models.deferred.draws import RecordedDraws
from crashproof.distillation.models.deferred.files import ReadBytes
from crashproof.distillation.models.deferred.tensor import CannotDefer, DeferredTensor, Source

__all__ = ["DeferredWeights", "fill_shards"]


class DeferredWeights:
    """Where each weight of some models comes from; in the models themselves, they are on the meta device."""

    def __init__(self) -> None:
        self.read = ReadBytes()
        """Of the files of the models."""
        self.unproven: list[tuple[Path, PreTrainedModel]] = []
        """Models that have not computed anything yet, with the folders that they come from."""
        self.shapes: dict[Path, PreTrainedModel] = {}
        """Of each folder its model, as it was read, without memory."""
        self._sources: dict[nn.Parameter, Source] = {}

    def adopt(self, folder: Path, model: PreTrainedModel, *, is_proven: bool) -> None:
        """Take the memory of a model that was read, if it has any; `is_proven` where it has computed something."""
        self.defer(model)
        self.shapes[folder] = deepcopy(model)
        if not is_proven:
            self.unproven.append((folder, model))

    def defer(self, module: nn.Module, draws: RecordedDraws | None = None) -> None:
        """Take the memory of a module's parameters from it; its buffers are kept, and filled.

        Raises:
            CannotDefer: a buffer would have to be drawn.
        """
        replaced: dict[nn.Parameter, nn.Parameter] = {}
        for each in module.modules():
            for name, parameter in list(each.named_parameters(recurse=False)):
                # A weight that two layers share stays one.
                if parameter not in replaced:
                    replaced[parameter] = self._without_memory(parameter, draws)
                setattr(each, name, replaced[parameter])
            for name, buffer in list(each.named_buffers(recurse=False)):
                if isinstance(buffer, DeferredTensor):
                    setattr(each, name, buffer.source.whole())
                elif buffer.is_meta:
                    raise CannotDefer(f"the buffer {name} is drawn")

    def take(self, module: nn.Module) -> dict[str, Source]:
        """The sources of a module's parameters by name, no longer kept here."""
        return {name: self._sources.pop(parameter) for name, parameter in module.named_parameters()}

    def _without_memory(self, parameter: nn.Parameter, draws: RecordedDraws | None) -> nn.Parameter:
        if parameter in self._sources:
            return parameter
        source = None if draws is None else draws.source(parameter)
        if source is not None:
            self._sources[parameter] = source
            return parameter
        without = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        empty = nn.Parameter(without, requires_grad=parameter.requires_grad)
        self._sources[empty] = _source_of(parameter)
        return empty


def _source_of(parameter: Tensor) -> Source:
    assert not parameter.is_meta, "it would stay without numbers"
    return parameter.source if isinstance(parameter, DeferredTensor) else _Held(tensor=parameter.detach())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A parameter that is in memory."""

    tensor: Tensor

    def whole(self) -> Tensor:
        return self.tensor

    def rows(self, first: int, last: int) -> Tensor:
        return self.tensor[first:last]
