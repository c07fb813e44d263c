"""The shape and origin of models."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = [
    "LoraOptions",
    "ModelShape",
    "StudentConfig",
]


class LoraOptions(Section):
    """`student.lora`: which adapters are trained."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """An adapter's product is scaled by alpha over rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what an adapter is given."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers that get one, such as `q_proj`; by default every linear layer but the head."""


class ModelShape(Section):
    """A Llama-style decoder, trained from scratch."""

    vocab_size: int | None = Field(default=None, ge=1)
    """Rows of the embedding; by default the tokenizer's. More than the tokenizer has is padding."""
    d_model: int = Field(default=64, ge=2)
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=4, ge=1)
    d_ff: int | None = Field(default=None, ge=1)
    """Width of the feed-forward layers; by default 8/3 of d_model, to a multiple of 8."""


class StudentConfig(ModelShape):
    """`student` (or `model`): the model to train."""

    path: Path | None = None
    """A local `transformers` folder to start from; its own shape counts then."""
    lora: LoraOptions | None = None
    """Train low-rank adapters alone; by default all weights are trained."""
