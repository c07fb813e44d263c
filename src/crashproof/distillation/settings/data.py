"""Settings of the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from crashproof.distillation.settings.section import Section

__all__ = ["DataConfig"]


class DataConfig(Section):
    """`data`: the training data."""

    path: Path | list[Path] | None = None
    """A file, a folder of files, or a list of them: JSON lines, JSON, CSV, Parquet or Arrow, also compressed; the
    guide has the forms of a line. Default: the text that ships with CPython."""
    split: str | None = None
    """Split to read where a folder has several."""
    learn_reasoning: bool = False
    """Learn the reasoning that lines have beside their answers, as `<think>…</think>` or as the chat template writes
    it; otherwise it is removed, and counted in the log."""
    learn_refusals: bool = False
    """Learn refusals as answers; otherwise they are context, and a line without another answer is left out."""
    preferences: Literal["refuse", "chosen"] = "refuse"
    """Lines with a better and a worse answer, in a recipe that does not compare them: an error, or the better answer
    is learned."""
    max_length: int = Field(default=128, ge=2)
    """Maximum tokens per sample; a longer text becomes several samples. Default: as many as the models of `path`
    accept, at most 4,096; this number for new ones."""
    on_too_long: Literal["error", "skip", "truncate"] = "error"
    """What happens to lines with more tokens: an error that counts them before anything is trained or paid, they are
    left out, or they are cut, and then no end is learned."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the lines held out from training for evaluation."""
    eval_path: Path | None = None
    """Separate file or folder for evaluation, in any of these forms."""
    eval_split: str | None = None
    """Split for evaluation, of `eval_path`, or of `path` without one."""

    @field_validator("path")
    @classmethod
    def _has_a_path(cls, path: Path | list[Path] | None) -> Path | list[Path] | None:
        if path == []:
            raise ValueError("an empty list names no file")
        return path

    @model_validator(mode="after")
    def _has_a_path_for_its_splits(self) -> DataConfig:
        if self.path is None and (self.split is not None or (self.eval_split is not None and not self.eval_path)):
            raise ValueError("a split belongs to a path: set data.path")
        return self
