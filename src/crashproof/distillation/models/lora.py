"""Low-rank adapters: train them, merge them.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, as `peft` does it: the adapters sit inside the
layers of the model, whose own weights are frozen and in no checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crashproof.distillation.settings.models import LoraOptions
from crashproof.errors import ConfigError
from crashproof.optional_dependencies import require_modules

__all__ = [
    "adapted_layers",
    "add_adapters",
    "added_weight",
    "has_adapters",
    "merge_adapters",
    "save_adapter",
    "without_adapters",
]

ADAPTER_FOLDER = "adapter"


def add_adapters(model: PreTrainedModel, options: LoraOptions) -> PreTrainedModel:
    """Put new adapters into a model, drawn from the global generator; its own weights are frozen.

    Raises:
        MissingExtra: `peft` is not installed.
        ConfigError: no layer has one of the names.
    """
    require_modules("lora", "peft")
    import peft

    targets: str | list[str] = "all-linear" if options.target_modules is None else list(options.target_modules)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
    )
    try:
        with warnings.catch_warnings():
            # peft calls a deprecated property of transformers.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            return cast(PreTrainedModel, peft.get_peft_model(model, config))
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"student.lora.target_modules {targets} fit no layer of {type(model).__name__} ({reason}).",
            hint="Leave the key out for every linear layer, or name layers such as q_proj.",
        ) from error


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether a model comes from `add_adapters`."""
    return hasattr(model, "merge_and_unload")


def save_adapter(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the adapters alone, as `peft` reads them, into `adapter/` of a folder that is being filled.

    `weights` are all of the model's by name, if it does not hold them itself.
    """
    model.save_pretrained(str(folder / ADAPTER_FOLDER), state_dict=weights)


def adapted_layers(model: PreTrainedModel) -> Mapping[str, nn.Module]:
    """The layers that adapters were put into by name, in the model without them; each holds its `base_layer`."""
    if not has_adapters(model):
        return {}
    from peft.tuners.lora import LoraLayer

    within = without_adapters(model)
    # The class is a mixin, and does not say itself that it is a module.
    return {name: each for name, each in within.named_modules() if issubclass(type(each), LoraLayer)}


def added_weight(layer: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
    """What merging adds to the weight of such a layer, from the weights of its adapters by their names in it."""
    inside = {f"layer.{name}": tensor for name, tensor in weights.items()}
    added: Tensor = torch.func.functional_call(_Added(layer), inside, ())
    return added


class _Added(nn.Module):
    """Computes what an adapter adds, instead of using it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self) -> Tensor:
        (name,) = self.layer.active_adapters
        added: Tensor = self.layer.get_delta_weight(name)
        return added


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Add the adapters into the weights: a plain model again; the given one cannot be used afterwards."""
    merge = cast(Callable[[], PreTrainedModel], model.merge_and_unload)
    return merge()


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The model that adapters were put into; a model without adapters is returned as it is."""
    get_base_model: Callable[[], PreTrainedModel] | None = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()
