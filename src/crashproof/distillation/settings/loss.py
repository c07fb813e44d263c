"""Settings of the losses of every recipe."""

from __future__ import annotations

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = ["DivergenceConfig", "LossConfig"]


class LossConfig(Section):
    """Fields of `loss` in every recipe."""

    chunk_tokens: int = Field(default=512, ge=1)
    """Rows of logits computed at a time."""


class DivergenceConfig(LossConfig):
    """The divergence of the student's distribution from the teacher's."""

    temperature: float = Field(default=2.0, gt=0)
    scales_by_temperature_squared: bool = True
    """Keeps the gradient's size independent of the temperature (Hinton, Vinyals & Dean 2015, section 2)."""

    @property
    def scale(self) -> float:
        """Factor of the divergence."""
        return self.temperature**2 if self.scales_by_temperature_squared else 1.0
