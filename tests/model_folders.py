"""Small model folders of many types, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.text.tokenizer import train_tokenizer

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 5, "What is two and two? Two and two is four. " * 5]
VOCAB_SIZE = 270
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
"""Of the configs of most types."""
WITHOUT_A_TEACHER = ("loss.kd=0", "loss.intermediate=0", "loss.ce=1")


def tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer, trained at the first call."""
    return train_tokenizer(TEXTS, vocab_size=VOCAB_SIZE, folder=folder)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: Any) -> Path:
    """A folder as `save_pretrained` writes it."""
    model.save_pretrained(str(folder), **options)
    tokenizer.save_pretrained(str(folder))
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def dtypes(state: dict[str, torch.Tensor]) -> set[torch.dtype]:
    """The types of all weights."""
    return {tensor.dtype for tensor in state.values()}
