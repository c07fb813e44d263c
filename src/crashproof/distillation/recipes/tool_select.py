"""The recipe that learns one tool call."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.data.tool_data import ToolBatch
from crashproof.distillation.data.tool_tokens import ARGUMENTS
from crashproof.distillation.losses.chunked import RowsLoss, values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.losses.tool_calls import name_choice_rows
from crashproof.distillation.recipes.recipe import LossPart, Recipe
from crashproof.distillation.recipes.tool_task import selection_loss, tool_task
from crashproof.distillation.settings.recipes.tool_select import ToolSelectConfig, ToolSelectLossConfig

__all__ = ["TOOL_SELECT", "ToolSelectRecipe"]


class ToolSelectRecipe(Recipe):
    """Reports `tool_selection_loss` and `argument_synthesis_loss`, each per token of its part.

    `tool_selection_loss` is the cross-entropy over the whole vocabulary, and on the name's tokens also
    `distractors` times the cross-entropy among the offered names. Together the parts are the whole turn.
    """

    def __init__(self, student: PreTrainedModel, config: ToolSelectLossConfig, *, vocab_size: int) -> None:
        """See `Recipe`."""
        parts = {
            "tool_selection_loss": LossPart(weight=config.tool_selection, counted_by="selection"),
            "argument_synthesis_loss": LossPart(weight=config.argument_synthesis, counted_by="arguments"),
        }
        super().__init__(student, parts, vocab_size=vocab_size)
        self._distractors = config.distractors
        self._chunk_tokens = config.chunk_tokens

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the tokens of its part."""
        assert isinstance(batch, ToolBatch)
        targets, choices = batch.targets.flatten(), batch.choices.flatten(0, 1)
        losses: dict[str, RowsLoss] = {"ce": lambda logits, rows: cross_entropy_rows(logits, targets[rows])}
        if "tool_selection_loss" in self.weights and self._distractors > 0:
            losses["choice"] = lambda logits, rows: name_choice_rows(logits, targets[rows], choices[rows])
        hidden = self.split.hidden(batch.input_ids).last
        values = values_of_rows(hidden, self.split.logits, batch.rows, losses, chunk_tokens=self._chunk_tokens)
        sums = {}
        if "tool_selection_loss" in self.weights:
            sums["tool_selection_loss"] = selection_loss(values, batch, batch.rows, distractors=self._distractors)
        if "argument_synthesis_loss" in self.weights:
            sums["argument_synthesis_loss"] = (values["ce"] * batch.share(ARGUMENTS, batch.rows)).sum()
        return sums


TOOL_SELECT = tool_task(
    "tool_select",
    ToolSelectConfig,
    has_one_call=True,
    build=lambda student, teacher, config, vocab_size: ToolSelectRecipe(student, config.loss, vocab_size=vocab_size),
)
"""`distill_tool_select`: chat with tools, and one call."""
