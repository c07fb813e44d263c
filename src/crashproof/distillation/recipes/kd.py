"""The recipe that distils a teacher into a student."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch, load_source, tokenized
from crashproof.distillation.evaluation.evaluator import TextEvaluator
from crashproof.distillation.losses.chunked import RowsLoss, values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows, hidden_distance_rows
from crashproof.distillation.models.causal_lm import require_vocabulary
from crashproof.distillation.models.text_model import text_config
from crashproof.distillation.recipes.recipe import LossPart, Recipe
from crashproof.distillation.recipes.task import Task
from crashproof.distillation.settings.recipes.kd import KdConfig, KdLossConfig
from crashproof.distillation.settings.section import validated
from crashproof.distillation.teachers.answer_file import has_logprobs
from crashproof.distillation.teachers.distributions import DistributionSource, FromModel, FromTopK
from crashproof.distillation.text.shared_tokens import SharedTokens
from crashproof.errors import ConfigError

__all__ = ["KD", "KdRecipe", "complete_config"]

log = logging.getLogger("crashproof")


class KdRecipe(Recipe):
    """Reports `kd`, `ce` and `intermediate`, each per predicted token."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel | None, config: KdLossConfig, *, vocab_size: int
    ) -> None:
        """See `Recipe`; without a teacher model, each batch must hold a teacher's distributions (`Batch.topk`).

        Raises:
            ModelMismatch: a model's vocabulary is smaller than the tokenizer's.
            ConfigError: no loss has a weight, or a mapped layer does not exist.
        """
        if teacher is not None:
            require_vocabulary(teacher, "teacher", vocab_size)
        parts = {
            "kd": LossPart(weight=config.kd, counted_by="tokens"),
            "ce": LossPart(weight=config.ce, counted_by="tokens"),
            "intermediate": LossPart(weight=config.intermediate, counted_by="tokens"),
        }
        super().__init__(student, parts, vocab_size=vocab_size)
        self._teacher: DistributionSource = FromTopK(config, vocab_size=vocab_size)
        if teacher is not None:
            source = FromModel(teacher, config, vocab_size=vocab_size)
            self._teacher, self.teacher = source, source.model
        self._chunk_tokens = config.chunk_tokens
        self._layers: dict[int, int] = {}
        self.projections = nn.ModuleDict()
        if "intermediate" in self.weights:
            assert teacher is not None, "the config refuses loss.intermediate where no model has hidden states"
            self._layers = _mapped_layers(config, student, teacher)
            widths = (text_config(student).hidden_size, text_config(teacher).hidden_size)
            for layer in self._layers:
                self.projections[str(layer)] = nn.Linear(*widths, bias=False)

    def restrict_teacher(self, tokens: SharedTokens) -> None:
        """See `Recipe.restrict_teacher`."""
        self._teacher.restrict(tokens)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the tokens that are predicted."""
        wants_layers = "intermediate" in self.weights
        student = self.split.hidden(batch.input_ids, with_layers=wants_layers)
        losses: dict[str, RowsLoss] = {}
        if "kd" in self.weights or wants_layers:
            teacher = self._teacher.answer(batch, with_layers=wants_layers)
        if "kd" in self.weights:
            losses["kd"] = teacher.kl_rows
        if "ce" in self.weights:
            targets = batch.targets.flatten()
            losses["ce"] = lambda logits, rows: cross_entropy_rows(logits, targets[rows])
        values = values_of_rows(student.last, self.split.logits, batch.rows, losses, chunk_tokens=self._chunk_tokens)
        sums = {name: value.sum() for name, value in values.items()}
        if wants_layers:
            pairs = [
                hidden_distance_rows(
                    self.projections[str(layer)](student.layers[layer].flatten(0, 1)[batch.rows]),
                    teacher.layers[teacher_layer].flatten(0, 1)[batch.rows],
                ).sum()
                for layer, teacher_layer in self._layers.items()
            ]
            sums["intermediate"] = torch.stack(pairs).mean()
        return sums


def _mapped_layers(config: KdLossConfig, student: PreTrainedModel, teacher: PreTrainedModel) -> dict[int, int]:
    num_student, num_teacher = (text_config(each).num_hidden_layers for each in (student, teacher))
    if config.layers is None:
        return {layer: max(1, round(layer * num_teacher / num_student)) for layer in range(1, num_student + 1)}
    for layer, teacher_layer in config.layers.items():
        if not (1 <= layer <= num_student and 1 <= teacher_layer <= num_teacher):
            raise ConfigError(
                f"loss.layers maps {layer} to {teacher_layer}; the student has {num_student} layers, "
                f"the teacher {num_teacher}.",
                hint="Layers are counted from 1.",
            )
    return dict(config.layers)


def complete_config(config: KdConfig) -> KdConfig:
    """Take the log-probabilities in the lines of the data as the teacher, if no teacher is configured.

    Raises:
        ConfigError: The losses need more than log-probabilities.
    """
    if config.loss.kd == 0 or not has_logprobs(config.data):
        return config
    if config.teacher.model_fields_set:
        if config.teacher.kind != "logprobs":
            log.info("The logprobs in %s are not used: teacher.kind is %s.", config.data.path, config.teacher.kind)
        return config
    log.info("Learning from the logprobs in %s; no other teacher is used.", config.data.path)
    content = config.model_dump(exclude_unset=True) | {"teacher": {"kind": "logprobs"}}
    content["loss"] = {"temperature": 1.0, "intermediate": 0.0} | content.get("loss", {})
    return validated(KdConfig, content)


KD = Task(
    name="kd",
    config=KdConfig,
    load=lambda config: load_source(config.data),
    tokenize=lambda source, config, tokenizer, cache: tokenized(source, config.data, tokenizer, cache),
    build=lambda student, teacher, config, vocab_size: KdRecipe(student, teacher, config.loss, vocab_size=vocab_size),
    evaluator=lambda source, data, config, tokenizer: TextEvaluator(data),
    complete=complete_config,
)
"""`distill_kd`: text, prompts with a teacher's text, or chat."""
