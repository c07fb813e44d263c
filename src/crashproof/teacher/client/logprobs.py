"""Forms of log-probabilities in responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["entries_of"]


def entries_of(sent: object) -> list[Any] | None:
    """The entries of an answer's tokens in the form of chat completions, or None if there are none.

    They are sent as a list of `{"token", "logprob", "bytes", "top_logprobs"}`, as the same under `content`, or as the
    lists `tokens`, `token_logprobs` and `top_logprobs` of completions.
    """
    if isinstance(sent, Mapping):
        if isinstance(sent.get("content"), list):
            return list(sent["content"])
        return list(_entries_of_completion(sent)) if isinstance(sent.get("tokens"), list) else None
    return sent if isinstance(sent, list) and sent else None


def _entries_of_completion(sent: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    logprobs, alternatives = _list_in(sent, "token_logprobs"), _list_in(sent, "top_logprobs")
    for place, token in enumerate(sent["tokens"]):
        found = alternatives[place] if place < len(alternatives) else None
        if isinstance(found, Mapping):
            found = [{"token": name, "logprob": logprob} for name, logprob in found.items()]
        yield {
            "token": token,
            "logprob": logprobs[place] if place < len(logprobs) else None,
            "top_logprobs": found if isinstance(found, list) else [],
        }


def _list_in(sent: Mapping[str, Any], name: str) -> list[Any]:
    found = sent.get(name)
    return found if isinstance(found, list) else []
