"""Read a model's folder without its weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from crashproof.distillation.models.config_file import why
from crashproof.distillation.models.deferred.files import ReadBytes, stored_tensors
from crashproof.distillation.models.deferred.tensor import CannotDefer
from crashproof.distillation.models.model_folder import ModelFolder, weight_files

__all__ = ["read_without_weights"]


def read_without_weights(folder: ModelFolder, read: ReadBytes) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model as `transformers` loads it, in fp32, and what it found of the weights, which are `DeferredTensor`s.

    Raises:
        CannotDefer: the weights can only be read as a whole, or not at all.
    """
    try:
        tensors = stored_tensors(weight_files(folder.path), read)
        model_class = _class_of(folder.config)
        is_nested = type(folder.config) is not model_class.config_class
        # Typed as a model alone, though what was found comes with it.
        loaded: Any = model_class.from_pretrained(
            None,
            config=folder.config.get_text_config() if is_nested else folder.config,
            state_dict=tensors,
            dtype="float32",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (CannotDefer, MemoryError):
        raise
    except Exception as error:  # Whole, it is read in another way; if that fails as well, that says why.
        raise CannotDefer(why(error)) from error
    _complete(loaded[0], folder)
    return loaded[0], loaded[1]


def _class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that `AutoModelForCausalLM` chooses; with a state dict, it has to be called itself."""
    with torch.device("meta"):
        # transformers leaves it untyped.
        shape: PreTrainedModel = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)  # type: ignore[no-untyped-call]
    return type(shape)


def _complete(model: PreTrainedModel, folder: ModelFolder) -> None:
    """Add what `transformers` reads from the folder beside the weights."""
    model.name_or_path = model.config.name_or_path = str(folder.path)
    if model.can_generate() and (folder.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder.path), local_files_only=True)
