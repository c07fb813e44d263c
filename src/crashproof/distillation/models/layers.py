"""The decoder layers of a student, and how they compute."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from crashproof.distillation.models.attention import attend_deterministically
from crashproof.distillation.models.lora import without_adapters
from crashproof.distillation.settings.train import TrainConfig
from crashproof.errors import ConfigError

__all__ = ["decoder_layers", "prepare_layers"]

_COMPILERS = ("c++", "g++", "clang++")


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that the model itself says must not be split."""
    within = without_adapters(model)
    names = set(within._no_split_modules or ())
    return [each for each in within.modules() if type(each).__name__ in names]


def prepare_layers(model: PreTrainedModel, train: TrainConfig, device: torch.device) -> None:
    """Set up deterministic attention, and activation checkpointing and compilation as configured.

    The names of weights do not change.

    Raises:
        ConfigError: the model cannot, or there is no compiler.
    """
    attend_deterministically()
    if train.checkpoints_activations:
        _checkpoint_activations(model)
    if train.compile:
        _require_compiler(device)
        for layer in decoder_layers(model):
            layer.compile()


def _checkpoint_activations(model: PreTrainedModel) -> None:
    # It warns at the first step that it disables the cache; ours is always empty.
    logging.getLogger("transformers.modeling_layers").setLevel(logging.ERROR)
    try:
        untyped: Any = model
        untyped.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"train.checkpoints_activations: {type(model).__name__} does not support it ({error}).",
            hint="Set it to false.",
        ) from error


def _require_compiler(device: torch.device) -> None:
    """On the CPU, compiled layers are C++."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    if device.type == "cpu" and not any(shutil.which(each) for each in wanted):
        raise ConfigError(
            f"train.compile needs a C++ compiler on the CPU, and none of {', '.join(wanted)} was found.",
            hint="Install one (Debian: apt-get install g++), or set train.compile to false.",
        )
