"""The text model inside a model.

Models that also read images keep the text model's config nested, and train none of their other parts on text.
"""

from __future__ import annotations

import logging

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from crashproof.distillation.models.lora import without_adapters

__all__ = ["most_positions", "text_config", "train_text_alone"]

log = logging.getLogger("crashproof")

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
_EXTENDED = frozenset({"dynamic", "yarn", "longrope", "llama3"})
"""Kinds of rotary positions that are scaled beyond those of the pretraining."""


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The config of the text model, which has the vocabulary, the width and the layers."""
    return model.config.get_text_config(decoder=True)


def most_positions(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model accepts; None if its config sets no limit, as with ALiBi and recurrent models.

    A sliding window is no limit: positions outside it are accepted, and not attended to.
    """
    text = config.get_text_config(decoder=True)
    stated = [value for name in _POSITIONS if isinstance(value := getattr(text, name, None), int) and value > 0]
    return max(stated[0], _most_scaled(text)) if stated else None


def train_text_alone(model: PreTrainedModel) -> None:
    """Freeze the parts of a model that text does not reach; a model of text alone has none."""
    within = without_adapters(model)
    if text_config(within) is within.config:
        return
    # transformers leaves both untyped.
    trained: tuple[nn.Module | None, ...] = (within.get_decoder(), within.get_output_embeddings())  # type: ignore[no-untyped-call]
    reached = {id(each) for part in trained if part is not None for each in part.parameters()}
    frozen = [each for each in within.parameters() if id(each) not in reached and each.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if frozen:
        log.info(
            "%s also reads other things than text: its other parts (%s parameters) are kept as they are.",
            type(within).__name__,
            f"{sum(each.numel() for each in frozen):,}",
        )


def _most_scaled(text: PreTrainedConfig) -> int:
    """The positions after a scaling of rotary positions; 0 without one."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) not in _EXTENDED:
        return 0
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    return int(factor * original) if factor and original else 0
