"""Train low-rank adapters instead of a whole student.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, as `peft` does it: the adapters sit inside the
layers of the model, whose own weights are frozen and in no checkpoint.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from crashproof.distillation.settings.models import LoraOptions
from crashproof.errors import ConfigError
from crashproof.optional_dependencies import require_modules

__all__ = [
    "has_adapters",
    "merged",
    "save_adapter",
    "with_adapters",
]

ADAPTER_FOLDER = "adapter"


def with_adapters(model: PreTrainedModel, options: LoraOptions) -> PreTrainedModel:
    """The model with new adapters in it, drawn from the global generator; nothing else of it is trained.

    Raises:
        MissingExtra: `peft` is not installed.
        ConfigError: no layer has one of the names.
    """
    require_modules("lora", "peft")
    import peft

    targets: Any = "all-linear" if options.target_modules is None else list(options.target_modules)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers in words of yesterday.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            return cast(PreTrainedModel, peft.get_peft_model(model, config))
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"student.lora.target_modules {targets} fit no layer of {type(model).__name__} ({reason}).",
            hint="Leave the key out for every linear layer, or name layers such as q_proj.",
        ) from error


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether a model was made by `with_adapters`."""
    return hasattr(model, "merge_and_unload")


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters alone, as `peft` reads them, into a folder under a folder that is being filled."""
    model.save_pretrained(str(folder / ADAPTER_FOLDER))


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapters added into its weights: a plain one again. The one that was given is used up."""
    untyped: Any = model
    return cast(PreTrainedModel, untyped.merge_and_unload())
