"""What a trainer knows of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import TaskData
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.distillation.settings.run import RunConfig

__all__ = ["AnyTask", "Task"]

ConfigT = TypeVar("ConfigT", bound=RunConfig)
SourceT = TypeVar("SourceT", bound=Source)
DataT = TypeVar("DataT", bound=TaskData)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Generic[ConfigT, SourceT, DataT]):
    """All that makes one recipe; each recipe file ends with one."""

    name: str
    config: type[ConfigT]
    """Its sections and their defaults."""
    load: Callable[[ConfigT], SourceT]
    """Reads and checks the lines of `data.path`, or generates some where there is no path."""
    tokenize: Callable[[SourceT, ConfigT, PreTrainedTokenizerFast, Path], DataT]
    """Takes the source, the config, the tokenizer and the cache folder."""
    build: Callable[[PreTrainedModel, PreTrainedModel | None, ConfigT, int], Recipe]
    """Takes the student, the teacher if it is a model, the config and the tokenizer's vocabulary size."""
    evaluator: Callable[[SourceT, DataT, ConfigT, PreTrainedTokenizerFast], Evaluator]
    """Takes the held-out source, its tokens, the config and the tokenizer."""
    complete: Callable[[ConfigT], ConfigT] = lambda config: config
    """Fills in what the data decide, before anything is prepared."""


AnyTask: TypeAlias = Task[Any, Any, Any]
"""A task whose types only its own recipe knows."""
