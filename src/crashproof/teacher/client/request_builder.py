"""Build requests from questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crashproof.errors import RequestError
from crashproof.rules.requests import TeacherRequest, teacher_request
from crashproof.rules.secrets.names import is_secret_text

__all__ = ["Messages", "RequestForm"]

Messages = str | Sequence[object]
"""A prompt, or messages in OpenAI's form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestForm:
    """What all requests to one teacher have in common."""

    base_url: str
    model: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Sampling parameters, such as `temperature` and `max_tokens`."""

    def fill(
        self, messages: Messages, *, tools: Sequence[object] | None = None, sample: int = 0, **parameters: object
    ) -> TeacherRequest:
        """Build the request for one question; its answer is stored under its `key`.

        Args:
            messages: A prompt, or messages in OpenAI's form (the official client's types too).
            tools: Tools in OpenAI's form.
            sample: Index among several answers to the same question; added to the `seed`, if there is one.
            parameters: Override the form's own; None removes one.

        Raises:
            RequestError: it is not made of JSON values, requests several choices at once, or a parameter is a secret.
        """
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        body = {**self.parameters, **parameters, "model": self.model, "messages": asked}
        if tools is not None:
            # Servers reject an empty list of tools.
            body["tools"] = list(tools) or None
        for name, value in body.items():
            if isinstance(value, str) and is_secret_text(name, value):
                raise RequestError(
                    f"The parameter {name} is a secret, and requests are stored.",
                    hint="Pass the key as api_key of the Endpoint.",
                )
        if body.get("n") not in (None, 1):
            raise RequestError(
                "n requests several answers at once.", hint="Request each by itself, with sample=0, 1, …."
            )
        seed = body.get("seed")
        if sample and isinstance(seed, int):
            body["seed"] = seed + sample
        return teacher_request(self.base_url, body, sample=sample)
