"""What the recipes with tools share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.tool_conversations import ToolSource, read_source
from crashproof.distillation.data.tool_data import ToolBatch, ToolData, tool_data
from crashproof.distillation.data.tool_tokens import SELECTION
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.evaluation.held_out_calls import CallEvaluator
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.distillation.recipes.task import Task
from crashproof.distillation.settings.recipes.tools import ToolRunConfig
from crashproof.distillation.tasks.tool_calls import generated_source

__all__ = ["selection_loss", "tool_task"]

ConfigT = TypeVar("ConfigT", bound="ToolRunConfig")


def tool_task(
    name: str,
    config: type[ConfigT],
    *,
    has_one_call: bool,
    build: Callable[[PreTrainedModel, PreTrainedModel | None, ConfigT, int], Recipe],
    has_masks: Callable[[ConfigT], bool] = lambda config: False,
) -> Task[ConfigT, ToolSource, ToolData]:
    """A task whose data are chat with tools.

    Args:
        name: The recipe's.
        config: The recipe's.
        has_one_call: Each line has exactly one call and is read to its end; otherwise one or more, and an answer.
        build: See `Task.build`.
        has_masks: Whether batches have the masks of the tools' grammars.
    """

    def load(config: ConfigT) -> ToolSource:
        data = config.data
        if data.path is None:
            return generated_source(data.samples, seed=data.task_seed, has_answers=not has_one_call)
        return read_source(data.path, data, has_one_call=has_one_call)

    def tokenize(source: ToolSource, config: ConfigT, tokenizer: PreTrainedTokenizerFast, cache: Path) -> ToolData:
        return tool_data(
            source, config.data, tokenizer, cache, ends_with_call=has_one_call, has_masks=has_masks(config)
        )

    def evaluator(
        source: ToolSource, data: ToolData, config: ConfigT, tokenizer: PreTrainedTokenizerFast
    ) -> Evaluator:
        return CallEvaluator(source.only(data.whole), data, tokenizer, num_generated=config.progress.eval_samples)

    return Task(
        name=name,
        config=config,
        load=load,
        tokenize=tokenize,
        build=build,
        evaluator=evaluator,
    )


def selection_loss(values: Mapping[str, Tensor], batch: ToolBatch, rows: Tensor, *, distractors: float) -> Tensor:
    """Cross-entropy of the tokens that select a tool, and `distractors` times that among the offered names.

    `values` holds `ce` and, unless it is left out, `choice`, each with a number for each of the `rows`.
    """
    loss = (values["ce"] * batch.share(SELECTION, rows)).sum()
    # Where there is nothing to choose, the choice is zero by itself.
    return loss + distractors * values["choice"].sum() if "choice" in values else loss
