"""The recipe that learns answers, and prefers better ones."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from crashproof.distillation.data.answer_data import AnswerBatch, AnswerSource, answer_data, read_answers
from crashproof.distillation.data.text_data import Batch
from crashproof.distillation.evaluation.held_out_answers import AnswerEvaluator
from crashproof.distillation.losses.preferences import odds_ratio_losses, weighted_likelihood_losses
from crashproof.distillation.recipes.recipe import LossPart, Recipe
from crashproof.distillation.recipes.task import Task
from crashproof.distillation.settings.recipes.answer_generation import AnswerGenerationConfig, AnswerLossConfig
from crashproof.distillation.tasks.answers import generated_answers

__all__ = ["ANSWER_GENERATION", "AnswerRecipe"]


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
