"""The recipe that learns tool calls and answers from their results."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.data.tool_data import ToolBatch
from crashproof.distillation.data.tool_tokens import INTEGRATION
from crashproof.distillation.losses.chunked import RowsLoss, values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.losses.tool_calls import json_validity_rows, name_choice_rows
from crashproof.distillation.models.causal_lm import require_vocabulary
from crashproof.distillation.recipes.recipe import LossPart, Recipe
from crashproof.distillation.recipes.tool_task import selection_loss, tool_task
from crashproof.distillation.settings.recipes.process import ProcessConfig, ProcessLossConfig
from crashproof.distillation.teachers.distributions import FromModel
from crashproof.distillation.text.shared_tokens import SharedTokens

__all__ = ["PROCESS", "ProcessRecipe"]


class ProcessRecipe(Recipe):
    """Reports `json_validity_loss`, `tool_selection_loss` and `integration_loss`, each per token of its part.

    Beside them `kd` and `ce`, where they weigh something, per token of the assistant.
    """

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel | None, config: ProcessLossConfig, *, vocab_size: int
    ) -> None:
        """See `Recipe`; a teacher is needed for `kd` alone."""
        if teacher is not None:
            require_vocabulary(teacher, "teacher", vocab_size)
        parts = {
            "json_validity_loss": LossPart(weight=config.json_validity, counted_by="json"),
            "tool_selection_loss": LossPart(weight=config.tool_selection, counted_by="selection"),
            "integration_loss": LossPart(weight=config.integration, counted_by="integration"),
            "kd": LossPart(weight=config.kd, counted_by="tokens"),
            "ce": LossPart(weight=config.ce, counted_by="tokens"),
        }
        super().__init__(student, parts, vocab_size=vocab_size)
        self._teacher: FromModel | None = None
        if "kd" in self.weights:
            assert teacher is not None, "the config refuses loss.kd where there is no model to ask"
            self._teacher = FromModel(teacher, config, vocab_size=vocab_size)
            self.teacher = self._teacher.model
        self._distractors = config.distractors
        self._chunk_tokens = config.chunk_tokens

    def restrict_teacher(self, tokens: SharedTokens) -> None:
        """See `Recipe.restrict_teacher`."""
        if self._teacher is not None:
            self._teacher.restrict(tokens)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the tokens of its part."""
        assert isinstance(batch, ToolBatch)
        masks, mask_of = batch.masks, batch.mask_of.flatten()
        hidden = self.split.hidden(batch.input_ids).last

        def values(rows: Tensor, losses: dict[str, RowsLoss]) -> dict[str, Tensor]:
            return values_of_rows(hidden, self.split.logits, rows, losses, chunk_tokens=self._chunk_tokens)

        losses = self._losses(batch)
        with_json = dict(losses)
        if "json_validity_loss" in self.weights:
            with_json["json"] = lambda logits, rows: json_validity_rows(logits, masks[mask_of[rows]])
        rest = batch.other_rows
        if {"kd", "ce"} & self.weights.keys():
            rest = torch.cat([rest, batch.free_rows])
        # Apart, because masks are as wide as logits, and few rows have one.
        json_values, rest_values = values(batch.json_rows, with_json), values(rest, losses)
        sums = {}
        if "json_validity_loss" in self.weights:
            sums["json_validity_loss"] = json_values["json"].sum()
        rows = torch.cat([batch.json_rows, rest])
        found = {name: torch.cat([json_values[name], rest_values[name]]) for name in losses}
        if "tool_selection_loss" in self.weights:
            sums["tool_selection_loss"] = selection_loss(found, batch, rows, distractors=self._distractors)
        if "integration_loss" in self.weights:
            sums["integration_loss"] = (found["ce"] * batch.share(INTEGRATION, rows)).sum()
        return sums | {name: found[name].sum() for name in ("kd", "ce") if name in self.weights}

    def _losses(self, batch: ToolBatch) -> dict[str, RowsLoss]:
        """The losses of single rows, each for every row."""
        targets, choices = batch.targets.flatten(), batch.choices.flatten(0, 1)
        losses: dict[str, RowsLoss] = {}
        if {"tool_selection_loss", "integration_loss", "ce"} & self.weights.keys():
            losses["ce"] = lambda logits, rows: cross_entropy_rows(logits, targets[rows])
        if "tool_selection_loss" in self.weights and self._distractors > 0:
            losses["choice"] = lambda logits, rows: name_choice_rows(logits, targets[rows], choices[rows])
        if self._teacher is not None:
            losses["kd"] = self._teacher.answer(batch, with_layers=False).kl_rows
        return losses


PROCESS = tool_task(
    "process",
    ProcessConfig,
    has_one_call=False,
    build=lambda student, teacher, config, vocab_size: ProcessRecipe(
        student, teacher, config.loss, vocab_size=vocab_size
    ),
    has_masks=lambda config: config.loss.json_validity > 0,
)
"""`distill_process`: chat with tools, calls, their results, and an answer."""
