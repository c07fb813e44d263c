"""The config of a paid teacher."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = ["ApiTeacherFields"]


class ApiTeacherFields(Section):
    """Of a `teacher` of kind `api`; the key is read from OPENAI_API_KEY."""

    model: str | None = None
    """The teacher's name at its API."""
    base_url: str | None = None
    """By default OPENAI_BASE_URL, else OpenAI's own."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Of one answer."""
    temperature: float | None = Field(default=None, ge=0)
    """The teacher's, when it samples an answer."""
    logprobs: int | None = Field(default=None, ge=1, le=20)
    """Entries of each token's distribution to learn from; without, only the text is."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Any other of the request."""
    store: str | None = None
    """Share answers with other runs: sqlite:///PATH, postgresql+psycopg://…; by default the run keeps them itself."""
    budget: Decimal | None = Field(default=None, gt=0)
    """US dollars that this run may spend."""
    prices: Path | None = None
    """A price table in place of the one inside."""
    concurrency: int = Field(default=16, ge=1)
    attempts: int = Field(default=1000, ge=1)
    """Tries of one request; the waits between them grow to a minute."""
    deadline_hours: float = Field(default=6.0, gt=0)
    """How long the run waits for a teacher that is away, before it saves and ends with exit code 75."""
    ahead_steps: int = Field(default=8, ge=0)
    """How many optimizer steps before it is needed an answer is asked for."""

    def request_parameters(self) -> dict[str, Any]:
        """What every request sets."""
        own: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        if self.logprobs is not None:
            own |= {"logprobs": True, "top_logprobs": self.logprobs}
        return {name: value for name, value in own.items() if value is not None} | self.parameters
