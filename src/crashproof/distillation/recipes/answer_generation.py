"""The recipe that learns answers, and prefers better ones."""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from crashproof.distillation.data.answer_data import (
    AnswerBatch,
    AnswerDataConfig,
    AnswerSource,
    answer_data,
    read_answers,
)
from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.evaluation.held_out_answers import AnswerEvaluator
from crashproof.distillation.losses.preferences import odds_ratio_losses, weighted_likelihood_losses
from crashproof.distillation.recipes.recipe import LossPart, Recipe
from crashproof.distillation.recipes.task import Task, require_no_teacher
from crashproof.distillation.settings.loss import LossConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.tasks.answers import generated_answers

__all__ = ["ANSWER_GENERATION", "AnswerGenerationConfig", "AnswerLossConfig", "AnswerRecipe"]


class AnswerLossConfig(LossConfig):
    """`loss`: the weight of each part; a part of weight 0 is not computed."""

    generation: float = Field(default=1.0, ge=0)
    """Cross-entropy of the answers without a `quality`, per token."""
    answer_quality: float = Field(default=0.25, ge=0)
    """Per judged answer, its odds ratio against the rejected one, or its likelihood times its quality. At 0, answers
    with a quality are not learned."""


class AnswerGenerationConfig(RunConfig):
    """The config of `distill_answer_generation`."""

    data: AnswerDataConfig = AnswerDataConfig()
    loss: AnswerLossConfig = AnswerLossConfig()

    @model_validator(mode="after")
    def _has_no_teacher(self) -> AnswerGenerationConfig:
        require_no_teacher(self, "answer_generation")
        return self


class AnswerRecipe(Recipe):
    """Reports `generation_loss`, per token, and `answer_quality_loss`, per judged answer.

    Answers of judged pairs count in both, as in ORPO. An answer with a `quality` counts in the second alone; one of
    quality 0 is not learned.
    """

    def __init__(self, student: PreTrainedModel, config: AnswerLossConfig, *, vocab_size: int) -> None:
        """See `Recipe`."""
        parts = {
            "generation_loss": LossPart(weight=config.generation, counted_by="learned"),
            "answer_quality_loss": LossPart(weight=config.answer_quality, counted_by="judged"),
        }
        super().__init__(student, parts, vocab_size=vocab_size)
        self._chunk_tokens = config.chunk_tokens

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the tokens or judged answers of a batch."""
        assert isinstance(batch, AnswerBatch)
        costs = self.split.cross_entropies(
            batch.input_ids, batch.targets, batch.rows, chunk_tokens=self._chunk_tokens
        )
        sums = {}
        if "generation_loss" in self.weights:
            sums["generation_loss"] = (costs * batch.is_learned[batch.sequence_of_row]).sum()
        if "answer_quality_loss" in self.weights:
            logprobs = batch.mean_logprobs(costs)
            pairs = odds_ratio_losses(logprobs[batch.chosen], logprobs[batch.rejected])
            sums["answer_quality_loss"] = pairs.sum() + weighted_likelihood_losses(logprobs, batch.quality).sum()
        return sums


def _load(config: AnswerGenerationConfig) -> AnswerSource:
    if config.data.path is None:
        return generated_answers(config.data.samples, seed=config.data.task_seed)
    return read_answers(config.data.path, config.data)


ANSWER_GENERATION = Task(
    name="answer_generation",
    config=AnswerGenerationConfig,
    load=_load,
    tokenize=lambda source, config, tokenizer, cache: answer_data(
        source, config.data, tokenizer, cache, has_rejected=config.loss.answer_quality > 0
    ),
    build=lambda student, teacher, config, vocab_size: AnswerRecipe(student, config.loss, vocab_size=vocab_size),
    evaluator=lambda source, data, config, tokenizer: AnswerEvaluator(
        source.only(data.whole), data, tokenizer, num_generated=config.progress.eval_samples
    ),
)
"""`distill_answer_generation`: prompts (with tools' results in them) and answers, judged or not."""
