"""What a recipe is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import Batch, Source, TaskData
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.losses.chunked import values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.models.split_model import SplitModel
from crashproof.distillation.settings.run import RunConfig

__all__ = ["Recipe", "Task"]

_CHUNK_TOKENS = 512


class Recipe(nn.Module):
    """A training task: what is trained, and its losses. The loop does everything else.

    Its submodules are what is trained and saved; a teacher is not one of them.
    """

    name: ClassVar[str]

    def __init__(self, student: PreTrainedModel, *, weights: dict[str, float], counted_by: dict[str, str]) -> None:
        """`weights` says how much each loss counts in the total, by the name that it is reported under;
        `counted_by`, which of the data's counts its sum is divided by.
        """
        super().__init__()
        self.student = student
        self.weights = weights
        self.counted_by = counted_by
        self.split = SplitModel(student)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over what it counts in a batch on the recipe's device."""
        raise AssertionError(f"{type(self).__name__} computes no losses")

    @torch.no_grad()
    def cross_entropies(self, batch: Batch) -> Tensor:
        """Minus log p of each predicted token of a batch, in nats, in the order of `Batch.rows`."""
        targets = batch.targets.flatten()
        values = values_of_rows(
            self.split.hidden(batch.input_ids).last,
            self.split.logits,
            batch.rows,
            {"ce": lambda logits, rows: cross_entropy_rows(logits, targets[rows])},
            chunk_tokens=_CHUNK_TOKENS,
        )
        return values["ce"]

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
        """Greedy continuations of prompts that are padded on the left; (batch, length), the new tokens last."""
        generated: Tensor = self.student.generate(  # type: ignore[operator]  # transformers leaves it so.
            input_ids=input_ids, attention_mask=attention_mask, do_sample=False, **settings
        )
        return generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that makes one recipe; each recipe file states one."""

    name: str
    config: type[RunConfig]
    """Its sections and their defaults."""
    load: Callable[[Any], Source]
    """Reads and checks the lines of `config.data`."""
    tokenize: Callable[[Source, Any, PreTrainedTokenizerFast, Path], TaskData]
    """Takes the source, the config, the tokenizer and the cache folder."""
    build: Callable[[PreTrainedModel, PreTrainedModel | None, Any, PreTrainedTokenizerFast], Recipe]
    """Takes the student, the teacher where one is asked, the config and the tokenizer."""
    asks_teacher: Callable[[Any], bool]
    """Whether a config wants a teacher at all."""
    evaluator: Callable[[Source, TaskData, Any, PreTrainedTokenizerFast], Evaluator] | None = field(default=None)
    """Takes the held-out source, its tokens, the config and the tokenizer; None where there is nothing to measure."""
