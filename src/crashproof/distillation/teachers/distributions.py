"""Where the teacher's distribution comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.losses.chunked import RowsLoss
from crashproof.distillation.losses.divergences import forward_kl_rows
from crashproof.distillation.losses.topk import topk_kl_rows
from crashproof.distillation.models.split_model import SplitModel
from crashproof.distillation.settings.loss import DivergenceConfig

__all__ = ["AskedTeacher", "FromModel", "FromTopK", "TeacherAnswer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherAnswer:
    """What a teacher says to one batch."""

    kl_rows: RowsLoss
    """KL(teacher ‖ student) of each row."""
    layers: tuple[Tensor, ...] = ()
    """Hidden states of the embedding and of each layer, (batch, length, width); only where they were asked for."""


class AskedTeacher(Protocol):
    """A teacher, whatever it is made of."""

    def answer(self, batch: Batch, *, with_layers: bool) -> TeacherAnswer:
        """What it says to a batch."""
        ...


class FromModel:
    """A model that is run on each batch."""

    def __init__(self, model: PreTrainedModel, config: DivergenceConfig, *, vocab_size: int) -> None:
        self._model = SplitModel(model)
        self._config = config
        self._vocab_size = vocab_size

    def answer(self, batch: Batch, *, with_layers: bool) -> TeacherAnswer:
        """One forward pass, without gradients; its logits are made with the student's, a few rows at a time."""
        with torch.no_grad():
            hidden = self._model.hidden(batch.input_ids, with_layers=with_layers)
        states = hidden.last.flatten(0, 1)

        def kl_rows(student_logits: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits = self._model.logits(states[rows])
            return forward_kl_rows(
                student_logits,
                teacher_logits,
                vocab_size=self._vocab_size,
                temperature=self._config.temperature,
                scale=self._config.scale,
            )

        return TeacherAnswer(kl_rows=kl_rows, layers=hidden.layers)


class FromTopK:
    """What the batch brings along: the largest entries that some teacher gave earlier, or elsewhere."""

    def __init__(self, config: DivergenceConfig, *, vocab_size: int) -> None:
        self._config = config
        self._vocab_size = vocab_size

    def answer(self, batch: Batch, *, with_layers: bool) -> TeacherAnswer:
        """The batch's own; it has no hidden states."""
        assert batch.topk is not None, "without a teacher model, the data must bring its answers"
        assert not with_layers, "nobody kept the hidden states"
        ids, logprobs = batch.topk.ids.flatten(0, 1), batch.topk.logprobs.flatten(0, 1)

        def kl_rows(student_logits: Tensor, rows: Tensor) -> Tensor:
            return topk_kl_rows(
                student_logits,
                ids[rows],
                logprobs[rows],
                vocab_size=self._vocab_size,
                temperature=self._config.temperature,
                scale=self._config.scale,
            )

        return TeacherAnswer(kl_rows=kl_rows)
