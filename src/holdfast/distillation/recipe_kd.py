"""Distil a teacher into a student."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.distillation.data import Batch
from holdfast.distillation.losses import (
    LossConfig,
    cross_entropy_sum,
    forward_kl_sum,
    hidden_state_sum,
    next_token_targets,
)
from holdfast.errors import ConfigError, ModelMismatch

__all__ = ["KdRecipe"]


class KdRecipe:
    """Reports `kd`, `ce` and `intermediate`."""

    name = "kd"

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, config: LossConfig, *, vocab_size: int
    ) -> None:
        """`vocab_size` is the tokenizer's: what a model has beyond it is padding.

        Raises:
            ModelMismatch: a model's vocabulary is smaller than the tokenizer's.
            ConfigError: no loss has a weight, or a mapped layer does not exist.
        """
        for title, model in (("teacher", teacher), ("student", student)):
            if model.config.vocab_size < vocab_size:
                found = model.config.vocab_size
                raise ModelMismatch(
                    f"The {title}'s vocabulary has {found:,} entries, the tokenizer's {vocab_size:,}.",
                    hint="Teacher and student must share the tokenizer that the data is read with.",
                )
        self.weights = {
            name: weight
            for name, weight in (("kd", config.kd), ("ce", config.ce), ("intermediate", config.intermediate))
            if weight > 0
        }
        if not self.weights:
            raise ConfigError(
                "All of loss.kd, loss.ce and loss.intermediate are 0.", hint="Weigh at least one of them."
            )
        self._student = student
        self._teacher = teacher
        self._config = config
        self._vocab_size = vocab_size
        self._layers = _mapped_layers(config, student, teacher) if "intermediate" in self.weights else {}
        widths = (student.config.hidden_size, teacher.config.hidden_size)
        self._projections = nn.ModuleDict({str(layer): nn.Linear(*widths, bias=False) for layer in self._layers})

    def modules(self) -> dict[str, nn.Module]:
        """The student, and the projections into the teacher's space."""
        return {"student": self._student, "projections": self._projections}

    def loss_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the tokens that are predicted."""
        targets = next_token_targets(batch.labels)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        wants_hidden = "intermediate" in self.weights
        student = self._student(**inputs, output_hidden_states=wants_hidden)
        sums: dict[str, Tensor] = {}
        if "kd" in self.weights or wants_hidden:
            with torch.no_grad():
                teacher = self._teacher(**inputs, output_hidden_states=wants_hidden)
        if "kd" in self.weights:
            sums["kd"] = forward_kl_sum(
                student.logits,
                teacher.logits,
                targets,
                vocab_size=self._vocab_size,
                temperature=self._config.temperature,
                scales_by_temperature_squared=self._config.scales_by_temperature_squared,
                chunk_tokens=self._config.chunk_tokens,
            )
        if "ce" in self.weights:
            sums["ce"] = cross_entropy_sum(student.logits, targets, chunk_tokens=self._config.chunk_tokens)
        if wants_hidden:
            pairs = [
                hidden_state_sum(
                    self._projections[str(layer)](student.hidden_states[layer]),
                    teacher.hidden_states[teacher_layer],
                    targets,
                )
                for layer, teacher_layer in self._layers.items()
            ]
            sums["intermediate"] = torch.stack(pairs).mean()
        return sums


def _mapped_layers(config: LossConfig, student: PreTrainedModel, teacher: PreTrainedModel) -> dict[int, int]:
    num_student, num_teacher = student.config.num_hidden_layers, teacher.config.num_hidden_layers
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
