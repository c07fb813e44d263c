"""Settings of the training data."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = ["DataConfig"]


class DataConfig(Section):
    """`data`: the training data."""

    path: Path | None = None
    """A JSONL file: `{"text"}`, `{"prompt", "teacher_text"}` or `{"messages"}` on each line; default: the text that
    ships with CPython."""
    max_length: int = Field(default=128, ge=2)
    """Maximum tokens per sample; a longer text becomes several samples, a longer answer is truncated."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the lines held out from training for evaluation."""
    eval_path: Path | None = None
    """Separate file for evaluation, in the same format."""
