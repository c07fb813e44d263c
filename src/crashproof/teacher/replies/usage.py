"""Tokens as servers report them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from crashproof.teacher.replies.choices import first_choice

__all__ = ["MOST_TOKENS", "PartialUsage", "Usage", "reported_cost"]

MOST_TOKENS = 10**12
"""More than any request has; bounds all sums of money."""

_PROMPT = ("prompt_tokens", "promptTokenCount", "prompt_token_count", "prompt_eval_count")
_PROMPT_BESIDE_CACHE = ("input_tokens", "inputTokens", "inputTokenCount", "input_token_count")
"""Names of Anthropic's manner: tokens of the cache are counted beside them, unless details say otherwise."""
_TOOL_PROMPT = ("toolUsePromptTokenCount", "tool_use_prompt_token_count")
_COMPLETION = (
    *("completion_tokens", "output_tokens", "candidatesTokenCount", "candidates_token_count", "outputTokens"),
    *("outputTokenCount", "output_token_count", "generated_tokens", "eval_count"),
)
_TOTAL = ("total_tokens", "totalTokenCount", "total_token_count", "totalTokens")
_REASONING_BESIDE = ("thoughtsTokenCount", "thoughts_token_count")
"""Gemini's names: never within the tokens of the candidates."""
_REASONING = ("reasoning_tokens", "reasoningTokens", "reasoning_token_count", "thinking_tokens")
_CACHED = (
    *("cached_tokens", "prompt_cache_hit_tokens", "cachedContentTokenCount", "cached_content_token_count"),
    *("cached_input_tokens", "cachedTokens"),
)
_CACHE_READ = ("cache_read_input_tokens", "cacheReadInputTokens", "cacheReadInputTokenCount")
_CACHE_WRITE = ("cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount")
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "prompt_token_details", "input_token_details")
_COMPLETION_DETAILS = (
    *("completion_tokens_details", "output_tokens_details"),
    *("completion_token_details", "output_token_details"),
)
_PLACES = ("usage", "usageMetadata", "usage_metadata", "token_usage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens of one answer."""

    prompt_tokens: int
    cached_tokens: int = 0
    """Included in `prompt_tokens`."""
    completion_tokens: int
    reasoning_tokens: int = 0
    """Included in `completion_tokens`."""

    @classmethod
    def read(cls, response: object) -> Usage | None:
        """Read the usage that a response reports; None if it does not tell both prompt and completion."""
        return PartialUsage.read(response).whole


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialUsage:
    """What can be read of a reported usage."""

    prompt_tokens: int | None = None
    """All tokens of the prompt, those of the cache too; None if not reported."""
    cached_tokens: int = 0
    completion_tokens: int | None = None
    """All that is billed as output, thoughts too; None if not reported."""
    reasoning_tokens: int = 0

    @classmethod
    def read(cls, response: object) -> PartialUsage:
        """Read the first place of a response that counts any tokens."""
        if not isinstance(response, Mapping):
            return cls()
        read = (_read(counts) for counts in _reported(response))
        told = (each for each in read if each.prompt_tokens is not None or each.completion_tokens is not None)
        return next(told, cls())

    @property
    def whole(self) -> Usage | None:
        """The usage; None if a half of it is missing."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=min(self.cached_tokens, self.prompt_tokens),
            completion_tokens=self.completion_tokens,
            reasoning_tokens=min(self.reasoning_tokens, self.completion_tokens),
        )


def reported_cost(response: Mapping[str, object]) -> Decimal | None:
    """What the provider itself says that an answer costs in US dollars (OpenRouter's `usage.cost`), if above 0."""
    usage = response.get("usage")
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("cost_details")
    upstream = details.get("upstream_inference_cost") if isinstance(details, Mapping) else None
    # With a key of one's own the provider behind the router is paid beside it.
    is_own_key = usage.get("is_byok") is True
    dollars = [_dollars(usage.get("cost")), _dollars(upstream) if is_own_key else None]
    return sum((each for each in dollars if each is not None), Decimal(0)) or None


def _read(counts: Mapping[str, object]) -> PartialUsage:
    cached, prompt = _prompt(counts)
    reasoning_beside = _first(counts, _REASONING_BESIDE)
    reasoning = reasoning_beside or _detail(counts, _COMPLETION_DETAILS, _REASONING) or 0
    completion, total = _first(counts, _COMPLETION), _first(counts, _TOTAL)
    if completion is not None and (reasoning_beside or reasoning > completion):
        completion += reasoning
    elif completion is None and reasoning:
        completion = reasoning
    if total is not None and prompt is None and completion is not None and total >= completion:
        prompt = total - completion
    if total is not None and prompt is not None:
        completion = max(total - prompt, completion or 0)
    return PartialUsage(
        prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion, reasoning_tokens=reasoning
    )


def _prompt(counts: Mapping[str, object]) -> tuple[int, int | None]:
    """Tokens from the cache, and all tokens of the prompt."""
    read, written = _first(counts, _CACHE_READ) or 0, _first(counts, _CACHE_WRITE) or 0
    cached = _detail(counts, _PROMPT_DETAILS, _CACHED) or read
    prompt = _first(counts, _PROMPT)
    if prompt is None:
        prompt = _first(counts, _PROMPT_BESIDE_CACHE)
        is_beside = prompt is not None and _detail(counts, _PROMPT_DETAILS, _CACHED) is None
    else:
        is_beside = False
    if prompt is not None and (is_beside or cached > prompt):
        prompt += cached + written
    tools = _first(counts, _TOOL_PROMPT) or 0
    return cached, None if prompt is None else prompt + tools


def _reported(response: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Every place where servers put their counts, the usual one first."""
    choice = first_choice(response)
    groq = response.get("x_groq")
    for owner in (response, choice, groq):
        if isinstance(owner, Mapping):
            yield from (owner[name] for name in _PLACES if isinstance(owner.get(name), Mapping))
    # Ollama's own form has them at the top.
    yield response


def _detail(counts: Mapping[str, object], owners: tuple[str, ...], names: tuple[str, ...]) -> int | None:
    """A count within the details, or else beside the others."""
    for name in owners:
        details = counts.get(name)
        if isinstance(details, Mapping) and (found := _first(details, names)) is not None:
            return found
    return _first(counts, names)


def _first(counts: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:
        # Most names are not there, and each answer is read for all of them.
        if name in counts and (count := _count(counts[name])) is not None:
            return count
    return None


def _count(value: object) -> int | None:
    """A number of tokens, also if it is spelled as text or as a float; None for what can be no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return math.ceil(number) if 0 <= number <= MOST_TOKENS else None


def _dollars(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        dollars = Decimal(str(value))
    except ArithmeticError:
        return None
    return dollars if dollars.is_finite() and 0 < dollars < 10**9 else None
