"""Choose a tool and write its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import Batch, Source, TaskData
from crashproof.distillation.data.tool_conversations import ToolSource, read_source
from crashproof.distillation.data.tool_data import ToolBatch, ToolData, ToolDataConfig, require_length, tool_data
from crashproof.distillation.data.tool_tokens import ARGUMENTS, SELECTION
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.evaluation.held_out_calls import CallEvaluator
from crashproof.distillation.losses.chunked import RowsLoss, values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.losses.tool_calls import name_choice_rows
from crashproof.distillation.models.causal_lm import require_vocabulary
from crashproof.distillation.recipes.recipe import Recipe, Task
from crashproof.distillation.settings.loss import LossConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.tasks.tool_calls import generated_source
from crashproof.errors import ConfigError

__all__ = ["TOOL_SELECT", "ToolSelectConfig", "ToolSelectLossConfig", "ToolSelectRecipe"]


class ToolSelectLossConfig(LossConfig):
    """`loss`: how much each part weighs; a part of weight 0 is not computed."""

    tool_selection: float = Field(default=1.0, ge=0)
    """From the beginning of the turn to the end of the tool's name."""
    argument_synthesis: float = Field(default=1.0, ge=0)
    """From there to the end of the turn."""
    distractors: float = Field(default=1.0, ge=0)
    """Within `tool_selection`: how much the choice among the offered names weighs beside all text."""


class ToolSelectConfig(RunConfig):
    """A whole config of `distill_tool_select`."""

    data: ToolDataConfig = ToolDataConfig()
    loss: ToolSelectLossConfig = ToolSelectLossConfig()

    @model_validator(mode="after")
    def _asks_nobody(self) -> ToolSelectConfig:
        if not self.teacher.is_a_model:
            raise ValueError(
                f"tool_select asks no teacher, and teacher.kind is {self.teacher.kind}: leave teacher out"
            )
        return self


class ToolSelectRecipe(Recipe):
    """Reports `tool_selection_loss` and `argument_synthesis_loss`, each per token of its part.

    `tool_selection_loss` is the cross-entropy over the whole vocabulary, and on the name's tokens also
    `distractors` times the cross-entropy among the offered names. Together the parts are the whole turn.
    """

    name: ClassVar[str] = "tool_select"

    def __init__(self, student: PreTrainedModel, config: ToolSelectLossConfig, *, vocab_size: int) -> None:
        """`vocab_size` is the tokenizer's: what a model has beyond it is padding.

        Raises:
            ModelMismatch: the student's vocabulary is smaller than the tokenizer's.
            ConfigError: no loss has a weight.
        """
        require_vocabulary(student, "student", vocab_size)
        parts = {"tool_selection_loss": config.tool_selection, "argument_synthesis_loss": config.argument_synthesis}
        weights = {name: weight for name, weight in parts.items() if weight > 0}
        if not weights:
            raise ConfigError(
                "Both loss.tool_selection and loss.argument_synthesis are 0.", hint="Weigh at least one of them."
            )
        counted_by = {"tool_selection_loss": "selection", "argument_synthesis_loss": "arguments"}
        super().__init__(student, weights=weights, counted_by={name: counted_by[name] for name in weights})
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
            # Where there is nothing to choose, the choice is zero by itself.
            chosen = self._distractors * values["choice"].sum() if "choice" in values else 0.0
            sums["tool_selection_loss"] = (values["ce"] * batch.share(SELECTION, batch.rows)).sum() + chosen
        if "argument_synthesis_loss" in self.weights:
            sums["argument_synthesis_loss"] = (values["ce"] * batch.share(ARGUMENTS, batch.rows)).sum()
        return sums


def _load(config: ToolDataConfig) -> ToolSource:
    if config.path is None:
        return generated_source(config.samples, seed=config.task_seed, has_answers=False)
    return read_source(config.path, has_one_call=True)


def _tokenize(source: Source, config: ToolSelectConfig, tokenizer: PreTrainedTokenizerFast, cache: Path) -> TaskData:
    assert isinstance(source, ToolSource)
    return tool_data(source, config.data, tokenizer, cache, ends_with_call=True, has_masks=False)


def _build(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    config: ToolSelectConfig,
    tokenizer: PreTrainedTokenizerFast,
) -> Recipe:
    assert teacher is None, "this recipe asks nobody"
    require_length(student, "student", config.data)
    return ToolSelectRecipe(student, config.loss, vocab_size=len(tokenizer))


def _evaluator(
    source: Source, data: TaskData, config: ToolSelectConfig, tokenizer: PreTrainedTokenizerFast
) -> Evaluator:
    assert isinstance(source, ToolSource)
    assert isinstance(data, ToolData)
    return CallEvaluator(source, data, tokenizer, num_generated=config.progress.eval_samples)


TOOL_SELECT = Task(
    name="tool_select",
    config=ToolSelectConfig,
    load=_load,
    tokenize=_tokenize,
    build=_build,
    asks_teacher=lambda config: False,
    evaluator=_evaluator,
)
"""`distill_tool_select`: chat with tools, and one call."""
