"""What every recipe's losses have."""

from __future__ import annotations

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = [
    "DivergenceConfig",
    "LossConfig",
]


class LossConfig(Section):
    """What `loss` has in every recipe."""

    chunk_tokens: int = Field(default=512, ge=1)
    """Rows of logits that are alive at a time."""


class DivergenceConfig(LossConfig):
    """How a teacher's distribution is held against the student's."""

    temperature: float = Field(default=2.0, gt=0)
    scales_by_temperature_squared: bool = True
    """Keeps the gradient's size independent of the temperature (Hinton, Vinyals & Dean 2015, section 2)."""

    @property
    def scale(self) -> float:
        """What a divergence is multiplied by."""
        return self.temperature**2 if self.scales_by_temperature_squared else 1.0
