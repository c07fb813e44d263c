"""Settings of the models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = ["LoraOptions", "ModelShape", "StudentConfig"]


class LoraOptions(Section):
    """`student.lora`: low-rank adapters."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """An adapter's product is scaled by alpha over rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on an adapter's input."""
    target_modules: tuple[str, ...] | None = None
    """Names of layers with adapters, such as `q_proj`; default: every linear layer but the head."""


class ModelShape(Section):
    """A Llama-style decoder, trained from scratch."""

    vocab_size: int | None = Field(default=None, ge=1)
    """Rows of the embedding; default: the tokenizer's. Additional rows are padding."""
    d_model: int = Field(default=64, ge=2)
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=4, ge=1)
    d_ff: int | None = Field(default=None, ge=1)
    """Width of the feed-forward layers; default: 8/3 of d_model, rounded to a multiple of 8."""


class StudentConfig(ModelShape):
    """`student` (or `model`): the model to train."""

    path: Path | None = None
    """Local `transformers` folder to start from; it determines the shape."""
    lora: LoraOptions | None = None
    """Train only low-rank adapters; by default all weights are trained."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the saved student's weights; `auto`: that of `path`, or float32. They are trained in float32."""
