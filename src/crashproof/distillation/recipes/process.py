"""Call tools in valid JSON and use what they give."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import Batch, Source, TaskData
from crashproof.distillation.data.tool_conversations import ToolSource, read_source
from crashproof.distillation.data.tool_data import ToolBatch, ToolData, ToolDataConfig, require_length, tool_data
from crashproof.distillation.data.tool_tokens import INTEGRATION, SELECTION
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.evaluation.held_out_calls import CallEvaluator
from crashproof.distillation.losses.chunked import RowsLoss, values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.losses.tool_calls import json_validity_rows, name_choice_rows
from crashproof.distillation.models.causal_lm import require_vocabulary
from crashproof.distillation.recipes.recipe import Recipe, Task
from crashproof.distillation.settings.loss import DivergenceConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.tasks.tool_calls import generated_source
from crashproof.distillation.teachers.distributions import FromModel
from crashproof.errors import ConfigError

__all__ = ["PROCESS", "ProcessConfig", "ProcessLossConfig", "ProcessRecipe"]

_COUNTED_BY = {
    "json_validity_loss": "json",
    "tool_selection_loss": "selection",
    "integration_loss": "integration",
    "kd": "tokens",
    "ce": "tokens",
}


class ProcessLossConfig(DivergenceConfig):
    """`loss`: how much each part weighs; a part of weight 0 is not computed."""

    json_validity: float = Field(default=1.0, ge=0)
    """The mass that tokens get which the tool's JSON Schema forbids."""
    tool_selection: float = Field(default=1.0, ge=0)
    """From the beginning of a call's turn to the end of the tool's name."""
    integration: float = Field(default=1.0, ge=0)
    """What the answer restates of the tools' results."""
    kd: float = Field(default=1.0, ge=0)
    """Forward KL from the teacher's distribution to the student's, over all that the assistant says."""
    ce: float = Field(default=0.5, ge=0)
    """Cross-entropy with all that the assistant says."""
    distractors: float = Field(default=1.0, ge=0)
    """Within `tool_selection`: how much the choice among the offered names weighs beside all text."""


class ProcessConfig(RunConfig):
    """A whole config of `distill_process`."""

    data: ToolDataConfig = ToolDataConfig()
    loss: ProcessLossConfig = ProcessLossConfig()

    @model_validator(mode="after")
    def _asks_a_model(self) -> ProcessConfig:
        if not self.teacher.is_a_model:
            raise ValueError(
                f"process learns from a model or from the lines alone, and teacher.kind is {self.teacher.kind}: use "
                "builtin or local, or set loss.kd to 0 and leave teacher out"
            )
        return self


class ProcessRecipe(Recipe):
    """Reports `json_validity_loss`, `tool_selection_loss` and `integration_loss`, each per token of its part.

    Beside them `kd` and `ce`, where they weigh something, per token of the assistant.
    """

    name: ClassVar[str] = "process"

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel | None, config: ProcessLossConfig, *, vocab_size: int
    ) -> None:
        """`vocab_size` is the tokenizer's: what a model has beyond it is padding. A teacher is needed for `kd` alone.

        Raises:
            ModelMismatch: a model's vocabulary is smaller than the tokenizer's.
            ConfigError: no loss has a weight.
        """
        if teacher is not None:
            require_vocabulary(teacher, "teacher", vocab_size)
        require_vocabulary(student, "student", vocab_size)
        parts = {
            "json_validity_loss": config.json_validity,
            "tool_selection_loss": config.tool_selection,
            "integration_loss": config.integration,
            "kd": config.kd,
            "ce": config.ce,
        }
        weights = {name: weight for name, weight in parts.items() if weight > 0}
        if not weights:
            raise ConfigError(
                "All of loss.json_validity, loss.tool_selection, loss.integration, loss.kd and loss.ce are 0.",
                hint="Weigh at least one of them.",
            )
        super().__init__(student, weights=weights, counted_by={name: _COUNTED_BY[name] for name in weights})
        self._teacher: FromModel | None = None
        if "kd" in weights:
            assert teacher is not None, "the config refuses loss.kd where there is no model to ask"
            self._teacher = FromModel(teacher, config, vocab_size=vocab_size)
        self._distractors = config.distractors
        self._chunk_tokens = config.chunk_tokens

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
        # Masks are as wide as logits, and few rows have one.
        of_json, of_rest = values(batch.json_rows, with_json), values(rest, losses)
        sums = {}
        if "json_validity_loss" in self.weights:
            sums["json_validity_loss"] = of_json["json"].sum()
        rows = torch.cat([batch.json_rows, rest])
        found = {name: torch.cat([of_json[name], of_rest[name]]) for name in losses}
        if "tool_selection_loss" in self.weights:
            # Where there is nothing to choose, the choice is zero by itself.
            chosen = self._distractors * found["choice"].sum() if "choice" in found else 0.0
            sums["tool_selection_loss"] = (found["ce"] * batch.share(SELECTION, rows)).sum() + chosen
        if "integration_loss" in self.weights:
            sums["integration_loss"] = (found["ce"] * batch.share(INTEGRATION, rows)).sum()
        return sums | {name: found[name].sum() for name in ("kd", "ce") if name in self.weights}

    def _losses(self, batch: ToolBatch) -> dict[str, RowsLoss]:
        """What is computed of every row."""
        targets, choices = batch.targets.flatten(), batch.choices.flatten(0, 1)
        losses: dict[str, RowsLoss] = {}
        if {"tool_selection_loss", "integration_loss", "ce"} & self.weights.keys():
            losses["ce"] = lambda logits, rows: cross_entropy_rows(logits, targets[rows])
        if "tool_selection_loss" in self.weights and self._distractors > 0:
            losses["choice"] = lambda logits, rows: name_choice_rows(logits, targets[rows], choices[rows])
        if self._teacher is not None:
            losses["kd"] = self._teacher.answer(batch, with_layers=False).kl_rows
        return losses


def _load(config: ToolDataConfig) -> ToolSource:
    if config.path is None:
        return generated_source(config.samples, seed=config.task_seed, has_answers=True)
    return read_source(config.path, has_one_call=False)


def _tokenize(source: Source, config: ProcessConfig, tokenizer: PreTrainedTokenizerFast, cache: Path) -> TaskData:
    assert isinstance(source, ToolSource)
    has_masks = config.loss.json_validity > 0
    return tool_data(source, config.data, tokenizer, cache, ends_with_call=False, has_masks=has_masks)


def _build(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    config: ProcessConfig,
    tokenizer: PreTrainedTokenizerFast,
) -> Recipe:
    require_length(student, "student", config.data)
    if teacher is not None:
        require_length(teacher, "teacher", config.data)
    return ProcessRecipe(student, teacher, config.loss, vocab_size=len(tokenizer))


def _evaluator(
    source: Source, data: TaskData, config: ProcessConfig, tokenizer: PreTrainedTokenizerFast
) -> Evaluator:
    assert isinstance(source, ToolSource)
    assert isinstance(data, ToolData)
    return CallEvaluator(source, data, tokenizer, num_generated=config.progress.eval_samples)


PROCESS = Task(
    name="process",
    config=ProcessConfig,
    load=_load,
    tokenize=_tokenize,
    build=_build,
    asks_teacher=lambda config: config.loss.kd > 0,
    evaluator=_evaluator,
)
"""`distill_process`: chat with tools, calls, their results, and an answer."""
