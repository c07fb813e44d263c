"""The current optimizer step of an HF Trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from crashproof.adapters.batches import num_samples, num_tokens
from crashproof.adapters.step_values import learning_rate_of, scalar_loss
from crashproof.errors import InvalidMetric
from crashproof.notices import Notices
from crashproof.odd_values import OddValues
from crashproof.scalars import PendingScalar, as_float, is_on_device, start_copy

__all__ = ["TrainerStep", "evaluation_results"]

log = logging.getLogger("crashproof")

_OWN_LOGS = frozenset({"loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos", "num_input_tokens_seen"})
"""What a Trainer logs by itself: recorded as fields of the step, or not worth recording."""
_OWN_PREFIXES = ("train_", "eval_", "test_")
_NO_RESULTS = ("_runtime", "_per_second", "epoch")
"""Endings of what an evaluation reports besides its results."""


class TrainerStep:
    """Adds up what the parts of an optimizer step report: losses on their device, samples, tokens and logs."""

    def __init__(self, trainer: Trainer) -> None:
        self.samples = self.tokens = 0
        """Of all processes, since the beginning of the run."""
        self.learning_rate: Tensor | float = 0.0
        self._trainer = trainer
        self._loss: Tensor | None = None
        """The sum over the parts of the step so far."""
        self._logged: dict[str, object] = {}
        """What the program logged since the step before."""
        self._num_stopping: PendingScalar | float = 0.0
        """The number of processes with a request to stop, as of the previous step."""
        self.keeps_batches = False
        """Whether a proof wants to see the batches of the step."""
        self.batches: list[object] = []
        self._notices = Notices()
        self._odd_values = OddValues()

    def restart(self, samples: int, tokens: int) -> None:
        """Begin to count from a step."""
        self.samples, self.tokens = samples, tokens
        self._loss = None
        self._num_stopping = 0.0

    def begin(self) -> None:
        """Begin a step."""
        self._loss = None
        self.batches = []

    def count(self, inputs: object) -> None:
        """Add the samples and tokens of a batch, over all processes."""
        if self.keeps_batches:
            self.batches.append(inputs)
        args = self._trainer.args
        num_replicas = self._trainer.get_total_train_batch_size(args) // (
            args.train_batch_size * args.gradient_accumulation_steps
        )
        samples = num_samples(inputs)
        if not samples:
            self._notices.warn(
                "samples", "A batch of type %s cannot be counted: it adds no samples.", type(inputs).__name__
            )
        self.samples += samples * num_replicas
        self.tokens += num_tokens(inputs) * num_replicas

    def add_loss(self, loss: object) -> None:
        """Add the loss of a batch; nothing if it is none."""
        number = scalar_loss(loss, self._notices)
        if number is None:
            return
        if self._loss is None:
            self._loss = torch.zeros((), device=number.device)
        self._loss = self._loss + number

    def note_learning_rate(self, optimizer: Any) -> None:
        """Note the learning rate before the schedule changes it."""
        self.learning_rate = learning_rate_of(optimizer, self._notices)

    def note_logs(self, logs: object) -> None:
        """Note what the program logs beside what a Trainer does, as a component of the next step's loss."""
        if isinstance(logs, Mapping):
            others = {name: value for name, value in logs.items() if not _is_of_trainer(name)}
            self._logged |= self._odd_values.numbers(others, "logs")

    def take_logs(self) -> dict[str, object]:
        """What was noted; once."""
        logged, self._logged = self._logged, {}
        return logged

    def forget_logs(self, names: Mapping[str, object]) -> None:
        """Drop what is recorded as an evaluation."""
        self._logged = {name: value for name, value in self._logged.items() if name not in names}

    def reduce(self, *, is_stop_requested: bool) -> tuple[Tensor | None, bool]:
        """The mean loss, and whether any process was requested to stop; all learn of it after the same step."""
        loss, args = self._loss, self._trainer.args
        if args.world_size == 1:
            return loss, is_stop_requested
        own = torch.zeros((), device=args.device) if loss is None else loss
        numbers = torch.stack([own.float(), torch.full_like(own, float(is_stop_requested), dtype=torch.float32)])
        torch.distributed.all_reduce(numbers)
        before, stopping = self._num_stopping, numbers[1]
        self._num_stopping = start_copy(stopping) if is_on_device(stopping) else float(stopping)
        mean = None if loss is None else numbers[0] / args.world_size
        return mean, (before if isinstance(before, float) else before.value()) > 0


def evaluation_results(metrics: Mapping[str, object]) -> tuple[dict[str, object], float]:
    """The results of an evaluation, and the seconds that it took."""
    results = {name: value for name, value in metrics.items() if not str(name).endswith(_NO_RESULTS)}
    return results, sum(_seconds(value) for name, value in metrics.items() if str(name).endswith("_runtime"))


def _seconds(value: object) -> float:
    try:
        return as_float(value, "runtime")
    except InvalidMetric:
        return 0.0


def _is_of_trainer(name: object) -> bool:
    return isinstance(name, str) and (name in _OWN_LOGS or name.startswith(_OWN_PREFIXES))
