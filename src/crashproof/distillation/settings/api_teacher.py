"""Settings of a paid teacher."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import Field

from crashproof.distillation.settings.section import Section

__all__ = ["ApiTeacherFields"]


class ApiTeacherFields(Section):
    """Fields of a `teacher` of kind `api`; the key is read from OPENAI_API_KEY."""

    model: str | None = None
    """Model name at the API."""
    base_url: str | None = None
    """Default: OPENAI_BASE_URL, or OpenAI's own."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Further headers of every request; the value `env:VAR` is read from the environment, as a secret must be."""
    query: dict[str, str] = Field(default_factory=dict)
    """Secrets in the address of every request, as `env:VAR`; anything else belongs into `base_url`."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens per completion."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature of the teacher."""
    logprobs: int | None = Field(default=None, ge=1, le=20)
    """Top log-probabilities per token to learn from; by default only the text is learned."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Other parameters of the request."""
    store: str | None = None
    """Database of answers shared with other runs: sqlite:///PATH, postgresql+psycopg://…; default: the run's own."""
    budget: Decimal | None = Field(default=None, gt=0)
    """Maximum US dollars that this run may spend."""
    prices: Path | None = None
    """Price table to use instead of the bundled one."""
    keep_truncated: bool = False
    """Whether to learn from answers that were cut off or filtered; the end token behind them is never learned."""
    concurrency: int = Field(default=16, ge=1)
    """Maximum requests in flight."""
    attempts: int = Field(default=1000, ge=1)
    """Maximum attempts per request; backoff grows up to a minute."""
    deadline_hours: float = Field(default=6.0, gt=0)
    """Hours to wait for an unreachable teacher before the run saves and exits with code 75."""
    first_byte_seconds: float = Field(default=900.0, gt=0)
    """Seconds from a request to the first byte of its answer."""
    between_chunks_seconds: float = Field(default=600.0, gt=0)
    """Seconds from one piece of an answer to the next."""
    ahead_steps: int = Field(default=8, ge=0)
    """Optimizer steps between the request for an answer and its use."""

    def request_parameters(self) -> dict[str, object]:
        """The parameters of every request."""
        own: dict[str, object] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        if self.logprobs is not None:
            own |= {"logprobs": True, "top_logprobs": self.logprobs}
        return {name: value for name, value in own.items() if value is not None} | self.parameters
