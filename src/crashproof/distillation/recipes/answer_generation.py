"""Write answers, and better ones rather than worse."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.answer_data import (
    AnswerBatch,
    AnswerData,
    AnswerDataConfig,
    AnswerSource,
    answer_data,
    read_answers,
)
from crashproof.distillation.data.text_data import Batch, Source, TaskData
from crashproof.distillation.data.tool_data import require_length
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.evaluation.held_out_answers import AnswerEvaluator
from crashproof.distillation.losses.chunked import values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.losses.preferences import odds_ratio_losses, weighted_likelihood_losses
from crashproof.distillation.models.causal_lm import require_vocabulary
from crashproof.distillation.recipes.recipe import Recipe, Task
from crashproof.distillation.settings.loss import LossConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.tasks.answers import generated_answers
from crashproof.errors import ConfigError

__all__ = ["ANSWER_GENERATION", "AnswerGenerationConfig", "AnswerLossConfig", "AnswerRecipe"]


class AnswerLossConfig(LossConfig):
    """`loss`: how much each part weighs; a part of weight 0 is not computed."""

    generation: float = Field(default=1.0, ge=0)
    """Cross-entropy with the answers that have no `quality`, per token."""
    answer_quality: float = Field(default=0.25, ge=0)
    """Of each judged answer: the odds ratio against its rejected one, or its likelihood times its quality. With 0,
    answers that have a quality teach nothing."""


class AnswerGenerationConfig(RunConfig):
    """A whole config of `distill_answer_generation`."""

    data: AnswerDataConfig = AnswerDataConfig()
    loss: AnswerLossConfig = AnswerLossConfig()

    @model_validator(mode="after")
    def _asks_nobody(self) -> AnswerGenerationConfig:
        if not self.teacher.is_a_model:
            raise ValueError(
                f"answer_generation asks no teacher, and teacher.kind is {self.teacher.kind}: leave teacher out"
            )
        return self


class AnswerRecipe(Recipe):
    """Reports `generation_loss`, per token, and `answer_quality_loss`, per judged answer.

    The answers of judged pairs are learned in both, as in ORPO. An answer with a `quality` is learned through that
    alone: one of quality 0 teaches nothing.
    """

    name: ClassVar[str] = "answer_generation"

    def __init__(self, student: PreTrainedModel, config: AnswerLossConfig, *, vocab_size: int) -> None:
        """`vocab_size` is the tokenizer's: what a model has beyond it is padding.

        Raises:
            ModelMismatch: the student's vocabulary is smaller than the tokenizer's.
            ConfigError: no loss has a weight.
        """
        require_vocabulary(student, "student", vocab_size)
        parts = {"generation_loss": config.generation, "answer_quality_loss": config.answer_quality}
        weights = {name: weight for name, weight in parts.items() if weight > 0}
        if not weights:
            raise ConfigError(
                "Both loss.generation and loss.answer_quality are 0.", hint="Weigh at least one of them."
            )
        counted_by = {"generation_loss": "learned", "answer_quality_loss": "judged"}
        super().__init__(student, weights=weights, counted_by={name: counted_by[name] for name in weights})
        self._chunk_tokens = config.chunk_tokens

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the tokens or judged answers of a batch."""
        assert isinstance(batch, AnswerBatch)
        of_rows = self._cross_entropy(batch)
        sums = {}
        if "generation_loss" in self.weights:
            sums["generation_loss"] = (of_rows * batch.is_learned[batch.sequence_of_row]).sum()
        if "answer_quality_loss" in self.weights:
            logprobs = batch.mean_logprobs(of_rows)
            pairs = odds_ratio_losses(logprobs[batch.chosen], logprobs[batch.rejected])
            sums["answer_quality_loss"] = pairs.sum() + weighted_likelihood_losses(logprobs, batch.quality).sum()
        return sums

    def _cross_entropy(self, batch: AnswerBatch) -> Tensor:
        targets = batch.targets.flatten()
        values = values_of_rows(
            self.split.hidden(batch.input_ids).last,
            self.split.logits,
            batch.rows,
            {"ce": lambda logits, rows: cross_entropy_rows(logits, targets[rows])},
            chunk_tokens=self._chunk_tokens,
        )
        return values["ce"]


def _load(config: AnswerDataConfig) -> AnswerSource:
    if config.path is None:
        return generated_answers(config.samples, seed=config.task_seed)
    return read_answers(config.path)


def _tokenize(
    source: Source, config: AnswerGenerationConfig, tokenizer: PreTrainedTokenizerFast, cache: Path
) -> TaskData:
    assert isinstance(source, AnswerSource)
    return answer_data(source, config.data, tokenizer, cache, has_rejected=config.loss.answer_quality > 0)


def _build(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    config: AnswerGenerationConfig,
    tokenizer: PreTrainedTokenizerFast,
) -> Recipe:
    assert teacher is None, "this recipe asks nobody"
    require_length(student, "student", config.data)
    return AnswerRecipe(student, config.loss, vocab_size=len(tokenizer))


def _evaluator(
    source: Source, data: TaskData, config: AnswerGenerationConfig, tokenizer: PreTrainedTokenizerFast
) -> Evaluator:
    assert isinstance(source, AnswerSource)
    assert isinstance(data, AnswerData)
    return AnswerEvaluator(source, data, tokenizer, num_generated=config.progress.eval_samples)


ANSWER_GENERATION = Task(
    name="answer_generation",
    config=AnswerGenerationConfig,
    load=_load,
    tokenize=_tokenize,
    build=_build,
    asks_teacher=lambda config: False,
    evaluator=_evaluator,
)
"""`distill_answer_generation`: prompts (with tools' results in them) and answers, judged or not."""
