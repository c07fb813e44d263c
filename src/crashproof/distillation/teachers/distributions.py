"""Sources of the teacher's distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.losses.chunked import RowsLoss
from crashproof.distillation.losses.divergences import forward_kl_rows
from crashproof.distillation.losses.shared import SharedIds, shared_kl_rows
from crashproof.distillation.losses.topk import topk_kl_rows
from crashproof.distillation.models.split_model import SplitModel
from crashproof.distillation.settings.loss import DivergenceConfig
from crashproof.distillation.text.shared_tokens import SharedTokens

__all__ = ["DistributionSource", "FromModel", "FromTopK", "TeacherAnswer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherAnswer:
    """A teacher's output for one batch."""

    kl_rows: RowsLoss
    """KL(teacher ‖ student) of each row."""
    layers: tuple[Tensor, ...] = ()
    """Hidden states of the embedding and of each layer, (batch, length, width); only on request."""


class DistributionSource(Protocol):
    """A teacher: a model, or what a batch brings along."""

    def answer(self, batch: Batch, *, with_layers: bool) -> TeacherAnswer:
        """The teacher's output for a batch."""
        ...

    def restrict(self, tokens: SharedTokens) -> None:
        """Compare only these tokens from now on."""
        ...


class FromModel:
    """A model that is run on each batch."""

    def __init__(self, model: PreTrainedModel, config: DivergenceConfig, *, vocab_size: int) -> None:
        self.model = SplitModel(model)
        self._config = config
        self._vocab_size = vocab_size
        self._shared: SharedIds | None = None

    def restrict(self, tokens: SharedTokens) -> None:
        """See `DistributionSource.restrict`."""
        self._shared = SharedIds.of(tokens)

    def answer(self, batch: Batch, *, with_layers: bool) -> TeacherAnswer:
        """One forward pass, without gradients; its logits are made with the student's, a few rows at a time."""
        with torch.no_grad():
            hidden = self.model.hidden(batch.input_ids, with_layers=with_layers)
        states = hidden.last.flatten(0, 1)
        if self._shared is not None:
            # Moved with the first batch; later this changes nothing.
            self._shared = self._shared.to(states.device)
        shared = self._shared

        def kl_rows(student_logits: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits = self.model.logits(states[rows])
            if shared is not None:
                return shared_kl_rows(
                    student_logits,
                    teacher_logits,
                    shared,
                    temperature=self._config.temperature,
                    scale=self._config.scale,
                )
            return forward_kl_rows(
                student_logits,
                teacher_logits,
                vocab_size=self._vocab_size,
                temperature=self._config.temperature,
                scale=self._config.scale,
            )

        return TeacherAnswer(kl_rows=kl_rows, layers=hidden.layers)


class FromTopK:
    """The largest entries of a teacher's distributions, computed earlier or elsewhere; each batch holds its own."""

    def __init__(self, config: DivergenceConfig, *, vocab_size: int) -> None:
        self._config = config
        self._vocab_size = vocab_size
        self._others: Tensor | None = None

    def restrict(self, tokens: SharedTokens) -> None:
        """See `DistributionSource.restrict`; other tokens of the teacher belong to the rest."""
        self._others = torch.tensor(tokens.others_of_teacher, dtype=torch.long)

    def answer(self, batch: Batch, *, with_layers: bool) -> TeacherAnswer:
        """The distributions in the batch; there are no hidden states."""
        assert batch.topk is not None, "without a teacher model, the data must hold its distributions"
        assert not with_layers, "hidden states are not stored"
        ids, logprobs = batch.topk.ids.flatten(0, 1), batch.topk.logprobs.flatten(0, 1)
        if self._others is not None:
            self._others = self._others.to(ids.device)
            ids = ids.masked_fill(torch.isin(ids, self._others), -1)

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
