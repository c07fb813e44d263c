"""Shard models over the processes of a run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from crashproof.distillation.models.causal_lm import require_causal
from crashproof.distillation.models.deferred.weights import DeferredWeights, fill_shards
from crashproof.distillation.models.layers import decoder_layers
from crashproof.distillation.models.lora import without_adapters
from crashproof.distillation.models.split_model import SplitModel
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.errors import ConfigError
from crashproof.formatting import as_bytes
from crashproof.pytorch.ranks import Ranks

__all__ = ["shard_models"]

log = logging.getLogger("crashproof")

ResultT = TypeVar("ResultT")

_METHODS = ("within", "cross_entropies", "generate")
"""Of a recipe: what is called beside its forward pass."""


def shard_models(recipe: Recipe, ranks: Ranks, device: torch.device, weights: DeferredWeights) -> None:
    """Give this process its part of each weight of the student and of the teacher; all processes call this.

    Until now, all weights are on the meta device.

    Raises:
        ConfigError: a process cannot read its part, or a model turns out to be no causal one.
        RankLost: another process died, or did not take part within the limit.
    """
    teacher = None if recipe.teacher is None else _Root(recipe.teacher.model)
    roots: list[nn.Module] = [recipe] if teacher is None else [recipe, teacher]
    sources = [weights.take(each) for each in roots]
    _shard_student(recipe, ranks, device)
    if teacher is not None:
        _shard_teacher(teacher, ranks, device)
        cast(SplitModel, recipe.teacher).run_within(teacher)

    def fill() -> None:
        for root, sources_of_root in zip(roots, sources, strict=True):
            fill_shards(root, sources_of_root, device)

    _act_together(fill, ranks, "reading the weights")
    read = weights.read
    log.info("Each process keeps its shard of the weights: of %s, this one read %s.", *map(as_bytes, read.counts()))
    _act_together(lambda: _examine(recipe, teacher, weights), ranks, "examining the models")


class _Root(nn.Module):
    """The outermost module of a teacher: whatever runs the model is called through it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], ResultT]) -> ResultT:
        return call()


def _shard_student(recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
    mesh = init_device_mesh(device.type, (ranks.num_ranks,))
    for layer in _separate_layers(recipe.student):
        fully_shard(layer, mesh=mesh)
    fully_shard(recipe, mesh=mesh)
    for name in _METHODS:
        register_fsdp_forward_method(recipe, name)


def _shard_teacher(root: _Root, ranks: Ranks, device: torch.device) -> None:
    """Shard what is in layers; the rest is gathered at the first pass, and stays: nobody trains it.

    The head is called once for each few rows, of which a process may have more than another: it cannot wait for them.
    """
    mesh = init_device_mesh(device.type, (ranks.num_ranks,))
    for layer in _separate_layers(root.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)


def _separate_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers whose weights no other part of the model has, the inner ones first.

    Some models count their embedding among them, whose weight the head may share: it belongs to the root then.
    """
    num_places = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    return [layer for layer in reversed(decoder_layers(model)) if _is_alone(layer, num_places)]


def _is_alone(layer: nn.Module, num_places: Mapping[int, int]) -> bool:
    own = Counter(id(each) for _, each in layer.named_parameters(remove_duplicate=False))
    return all(num_places[each] == count for each, count in own.items())


@torch.no_grad()
def _examine(recipe: Recipe, teacher: _Root | None, weights: DeferredWeights) -> None:
    """What is otherwise done when a model is read: it needs the weights, and so all processes."""
    student = without_adapters(recipe.student)
    # Compiled for other shapes than those of the data, layers might compute otherwise.
    with torch.compiler.set_stance("force_eager"):
        recipe.within(lambda: _examine_model(recipe.split, student, weights))
        if teacher is not None:
            split = cast(SplitModel, recipe.teacher)
            teacher(lambda: _examine_model(split, split.model, weights))
            cast(FSDPModule, teacher).reshard()
    # Else what was gathered would stay, when a checkpoint has long changed the shards.
    cast(FSDPModule, recipe).reshard()
    weights.unproven.clear()


def _examine_model(split: SplitModel, model: PreTrainedModel, weights: DeferredWeights) -> None:
    split.examine()
    for folder, unproven in weights.unproven:
        if unproven is model:
            require_causal(folder, model)


def _act_together(act: Callable[[], None], ranks: Ranks, what: str) -> None:
    """Act on every process; a failure of one ends all, and the main one reports it."""
    failure: tuple[str, str] | None = None
    try:
        with ranks.collective(what):
            act()
    except ConfigError as error:
        failure = (error.message, error.hint)
    failures = ranks.all_gather(failure, what)
    for rank, found in enumerate(failures):
        if found is not None and not ranks.is_main:
            raise SystemExit(2)
        if found is not None:
            message, hint = found
            raise ConfigError(message if failures[0] else f"Rank {rank}: {message}", hint=hint)
