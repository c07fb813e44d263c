"""A model, a teacher and data, made from nothing."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.device.sizes import ModelSize
from crashproof.distillation.data.text_data import TokenizedData
from crashproof.distillation.recipes.kd import KdLossConfig, KdRecipe

__all__ = ["random_tokens", "recipe_on"]

_NUM_SAMPLES = 64


def recipe_on(device: torch.device, size: ModelSize) -> KdRecipe:
    """`kd`, `ce` and `intermediate` of a student and a teacher of the same shape, as a trainer has them."""
    torch.manual_seed(0)
    student, teacher = _llama(size), _llama(size)
    recipe = KdRecipe(student, teacher, KdLossConfig(), vocab_size=size.vocabulary)
    teacher.to(device)  # type: ignore[arg-type]  # transformers leaves it so.
    return recipe.to(device)


def random_tokens(size: ModelSize) -> TokenizedData:
    """Samples of one length."""
    tokens = torch.randint(
        3, size.vocabulary, (_NUM_SAMPLES, size.length), generator=torch.Generator().manual_seed(0)
    )
    starts = torch.arange(0, tokens.numel() + 1, size.length)
    return TokenizedData(input_ids=tokens.flatten(), labels=tokens.flatten(), starts=starts, pad_id=0)


def _llama(size: ModelSize) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=8 * size.width // 3,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_heads,
            max_position_embeddings=size.length,
        )
    )
