"""Settings of the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = ["DataConfig"]


class DataConfig(Section):
    """`data`: the training data."""

    path: Path | None = None
    """A JSONL file: `{"text"}`, `{"prompt", "teacher_text"}` or `{"messages"}` on each line; default: the text that
    ships with CPython."""
    max_length: int = Field(default=128, ge=2)
    """Maximum tokens per sample; a longer text becomes several samples. Default: as many as the models of `path`
    accept, at most 4,096; this number for new ones."""
    on_too_long: Literal["error", "skip", "truncate"] = "error"
    """What happens to lines with more tokens: an error that counts them before anything is trained or paid, they are
    left out, or they are cut, and then no end is learned."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the lines held out from training for evaluation."""
    eval_path: Path | None = None
    """Separate file for evaluation, in the same format."""
