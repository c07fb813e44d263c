"""What the loop asks of a recipe."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from holdfast.distillation.data import Batch

__all__ = ["Recipe"]


class Recipe(Protocol):
    """A training task: its modules and its losses. The loop does everything else."""

    name: str
    weights: dict[str, float]
    """How much each loss counts in the total, by the name that it is reported under."""

    def modules(self) -> dict[str, nn.Module]:
        """What is trained and saved, by name."""
        ...

    def loss_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Each weighted loss, summed over the counted tokens of a batch on the recipe's device."""
        ...
