"""Where the teacher's distribution comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.distillation.data import Batch
from holdfast.distillation.losses import LossConfig, forward_kl_sum
from holdfast.distillation.topk_losses import topk_kl_sum

__all__ = ["AskedTeacher", "FromModel", "FromTopK", "TeacherAnswer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherAnswer:
    """What a teacher says to one batch."""

    kl_sum: Callable[[Tensor, Tensor], Tensor]
    """Takes the student's logits and the targets; KL(teacher ‖ student), summed over the targets."""
    hidden_states: tuple[Tensor, ...] = ()
    """Of the embedding and of each layer, (batch, length, width); only where they were asked for."""


class AskedTeacher(Protocol):
    """A teacher, whatever it is made of."""

    def answer(self, batch: Batch, *, with_hidden_states: bool) -> TeacherAnswer:
        """What it says to a batch."""
        ...


class FromModel:
    """A model that is run on each batch."""

    def __init__(self, model: PreTrainedModel, config: LossConfig, *, vocab_size: int) -> None:
        self._model = model
        self._config = config
        self._vocab_size = vocab_size

    def answer(self, batch: Batch, *, with_hidden_states: bool) -> TeacherAnswer:
        """One forward pass, without gradients."""
        with torch.no_grad():
            output = self._model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                output_hidden_states=with_hidden_states,
            )

        def kl_sum(student_logits: Tensor, targets: Tensor) -> Tensor:
            return forward_kl_sum(
                student_logits,
                output.logits,
                targets,
                vocab_size=self._vocab_size,
                temperature=self._config.temperature,
                scales_by_temperature_squared=self._config.scales_by_temperature_squared,
                chunk_tokens=self._config.chunk_tokens,
            )

        return TeacherAnswer(kl_sum=kl_sum, hidden_states=output.hidden_states or ())


class FromTopK:
    """What the batch brings along: the largest entries that some teacher gave earlier, or elsewhere."""

    def __init__(self, config: LossConfig, *, vocab_size: int) -> None:
        self._config = config
        self._vocab_size = vocab_size

    def answer(self, batch: Batch, *, with_hidden_states: bool) -> TeacherAnswer:
        """The batch's own; it has no hidden states."""
        assert batch.topk is not None, "without a teacher model, the data must bring its answers"
        assert not with_hidden_states, "nobody kept the hidden states"
        topk = batch.topk

        def kl_sum(student_logits: Tensor, targets: Tensor) -> Tensor:
            return topk_kl_sum(
                student_logits,
                topk.ids,
                topk.logprobs,
                targets,
                vocab_size=self._vocab_size,
                temperature=self._config.temperature,
                scales_by_temperature_squared=self._config.scales_by_temperature_squared,
                chunk_tokens=self._config.chunk_tokens,
            )

        return TeacherAnswer(kl_sum=kl_sum)
