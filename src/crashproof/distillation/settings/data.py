"""What to learn from."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = [
    "DataConfig",
]


class DataConfig(Section):
    """`data`: what to learn from."""

    path: Path | None = None
    """A JSONL file: `{"text"}`, `{"prompt", "teacher_text"}` or `{"messages"}` a line; by default the text that ships
    inside CPython."""
    max_length: int = Field(default=128, ge=2)
    """Tokens of one sample; a longer text becomes several samples, a longer answer is cut."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """The share of the lines that is kept from training, to evaluate on."""
    eval_path: Path | None = None
    """A file of its own to evaluate on, in the same format."""
