"""The module that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.models.causal_lm import require_vocabulary
from crashproof.distillation.models.split_model import SplitModel
from crashproof.distillation.text.shared_tokens import SharedTokens
from crashproof.errors import ConfigError

__all__ = ["LossPart", "Recipe"]

ResultT = TypeVar("ResultT")

_CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPart:
    """One of the losses that a recipe adds up."""

    weight: float
    """In the total; a part of weight 0 is not computed."""
    counted_by: str
    """Which of the data's counts its sum is divided by."""


class Recipe(nn.Module):
    """The modules that are trained, and their losses; the loop does everything else.

    Its submodules are trained and saved; a teacher is not one of them.
    """

    teacher: SplitModel | None = None
    """The model that is asked about each batch, if there is one."""

    def __init__(self, student: PreTrainedModel, parts: Mapping[str, LossPart], *, vocab_size: int) -> None:
        """`parts` have the names that they are reported under: the config's, some with `_loss` behind them.

        `vocab_size` is the tokenizer's: a model's entries beyond it are padding.

        Raises:
            ModelMismatch: the student's vocabulary is smaller than the tokenizer's.
            ConfigError: no part has a weight.
        """
        super().__init__()
        require_vocabulary(student, "student", vocab_size)
        self.student = student
        self.weights = {name: part.weight for name, part in parts.items() if part.weight > 0}
        self.counted_by = {name: parts[name].counted_by for name in self.weights}
        if not self.weights:
            *others, last = (f"loss.{name.removesuffix('_loss')}" for name in parts)
            all_of_them = "Both" if len(others) == 1 else "All of"
            raise ConfigError(
                f"{all_of_them} {', '.join(others)} and {last} are 0.", hint="Give at least one of them a weight."
            )
        self.split = SplitModel(student)

    def restrict_teacher(self, tokens: SharedTokens) -> None:
        """Compare the teacher's distribution over these tokens alone; without a teacher this changes nothing."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over what it counts in a batch on the recipe's device."""
        raise AssertionError(f"{type(self).__name__} computes no losses")

    @torch.no_grad()
    def within(self, call: Callable[[], ResultT]) -> ResultT:
        """Call something that runs the student: where its weights are sharded, they are complete in it."""
        return call()

    @torch.no_grad()
    def cross_entropies(self, batch: Batch) -> Tensor:
        """Minus log p of each predicted token of a batch, in nats, in the order of `Batch.rows`."""
        return self.split.cross_entropies(batch.input_ids, batch.targets, batch.rows, chunk_tokens=_CHUNK_TOKENS)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings: object) -> Tensor:
        """Greedy continuations of prompts that are padded on the left; (batch, length), the new tokens last."""
        generated: Tensor = self.student.generate(  # type: ignore[operator]  # transformers leaves it so.
            input_ids=input_ids, attention_mask=attention_mask, do_sample=False, **settings
        )
        return generated
