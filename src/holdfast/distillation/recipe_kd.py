"""Distil a teacher into a student."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.distillation.data import Batch
from holdfast.distillation.distributions import AskedTeacher, FromModel, FromTopK
from holdfast.distillation.losses import LossConfig, cross_entropy_sum, hidden_state_sum, next_token_targets
from holdfast.distillation.models import require_vocabulary
from holdfast.errors import ConfigError

__all__ = ["KdRecipe"]


class KdRecipe:
    """Reports `kd`, `ce` and `intermediate`."""

    name = "kd"

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel | None, config: LossConfig, *, vocab_size: int
    ) -> None:
        """`vocab_size` is the tokenizer's: what a model has beyond it is padding.

        Without a teacher model, each batch brings what a teacher says of it (`Batch.topk`).

        Raises:
            ModelMismatch: a model's vocabulary is smaller than the tokenizer's.
            ConfigError: no loss has a weight, or a mapped layer does not exist.
        """
        if teacher is not None:
            require_vocabulary(teacher, "teacher", vocab_size)
        require_vocabulary(student, "student", vocab_size)
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
        self._teacher = _asked(teacher, config, vocab_size)
        self._config = config
        self._layers: dict[int, int] = {}
        self._projections = nn.ModuleDict()
        if "intermediate" in self.weights:
            assert teacher is not None, "the config refuses loss.intermediate where no model has hidden states"
            self._layers = _mapped_layers(config, student, teacher)
            widths = (student.config.hidden_size, teacher.config.hidden_size)
            for layer in self._layers:
                self._projections[str(layer)] = nn.Linear(*widths, bias=False)

    def modules(self) -> dict[str, nn.Module]:
        """The student, and the projections into the teacher's space."""
        return {"student": self._student, "projections": self._projections}

    def loss_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the tokens that are predicted."""
        targets = next_token_targets(batch.labels)
        wants_hidden = "intermediate" in self.weights
        student = self._student(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=wants_hidden
        )
        sums: dict[str, Tensor] = {}
        if "kd" in self.weights or wants_hidden:
            teacher = self._teacher.answer(batch, with_hidden_states=wants_hidden)
        if "kd" in self.weights:
            sums["kd"] = teacher.kl_sum(student.logits, targets)
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


def _asked(teacher: PreTrainedModel | None, config: LossConfig, vocab_size: int) -> AskedTeacher:
    if teacher is None:
        return FromTopK(config, vocab_size=vocab_size)
    return FromModel(teacher, config, vocab_size=vocab_size)


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
