"""From a question to the request that is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crashproof.errors import RequestError
from crashproof.rules.requests import TeacherRequest, teacher_request

__all__ = ["RequestForm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestForm:
    """What all requests to one teacher have in common."""

    base_url: str
    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Sampling parameters, such as `temperature` and `max_tokens`."""

    def fill(
        self, messages: str | Sequence[Any], *, tools: Sequence[Any] | None = None, sample: int = 0, **parameters: Any
    ) -> TeacherRequest:
        """The request for one question; its `key` is what the answer is kept under.

        Args:
            messages: A prompt, or messages in OpenAI's form (the official client's types too).
            tools: As in OpenAI's API.
            sample: Which of several answers to the same question; moves the `seed` along, where there is one.
            parameters: In place of the form's own; None leaves one out.

        Raises:
            RequestError: it is not made of JSON values, or asks for several answers at once.
        """
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        body = {**self.parameters, **parameters, "model": self.model, "messages": asked}
        if tools is not None:
            # No server takes an empty list of tools.
            body["tools"] = list(tools) or None
        if body.get("n") not in (None, 1):
            raise RequestError(
                "n asks for several answers in one.", hint="Ask for each by itself, with sample=0, 1, …."
            )
        if sample and isinstance(body.get("seed"), int):
            body["seed"] += sample
        return teacher_request(self.base_url, body, sample=sample)
