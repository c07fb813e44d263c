"""What a student can do with data that it never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from holdfast.pytorch.device import ComputeDevice

if TYPE_CHECKING:
    from holdfast.distillation.recipe import Recipe

__all__ = ["Evaluator", "Sums"]

Sums = dict[str, tuple[float, float]]
"""A sum and what it is divided by, for each name: those of several processes are added up before the division."""


class Evaluator(Protocol):
    """Measures a recipe's student; changes neither weights nor random states."""

    def sums(self, recipe: Recipe, device: ComputeDevice, *, rank: int, num_ranks: int, in_lockstep: bool) -> Sums:
        """What this process's share of the held-out data gives.

        Where the model is sharded (`in_lockstep`), every process calls `recipe` and `recipe.generate` equally often.
        """
        ...

    def results(self, sums: Sums) -> dict[str, float]:
        """The numbers that are reported, such as the perplexity."""
        ...
