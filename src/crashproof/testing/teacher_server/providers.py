"""The manners of providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from crashproof.rules.requests import JsonObject
from crashproof.testing.teacher_server.completions import Usage

__all__ = ["MANNERS", "Manner", "Provider"]


class Provider(StrEnum):
    """Whose way of answering a server takes on: the names in its usage, and the fields beside its answers."""

    OPENAI = "openai"
    OPENROUTER = "openrouter"
    """States its own cost, and the upstream provider's finish reason."""
    MINIMAX = "minimax"
    """Has a `base_resp` in every body."""
    GEMINI = "gemini"
    """Counts thoughts in the total alone."""
    DEEPSEEK = "deepseek"
    """Counts hits and misses of its cache."""
    AZURE = "azure"
    """Adds the results of its content filter."""
    VLLM = "vllm"
    """Adds stop reasons; its details may be null."""
    SGLANG = "sglang"
    """Counts reasoning beside the completion's tokens."""
    OLLAMA = "ollama"
    """Reports nothing but the three sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """What one provider's bodies look like."""

    usage: Callable[[Usage, Decimal], JsonObject]
    """Its `usage`, from the tokens that are charged and their price."""
    body: JsonObject = field(default_factory=dict)
    """Fields beside the choices."""
    choice: JsonObject = field(default_factory=dict)
    """Fields beside each message."""
    message: JsonObject = field(default_factory=dict)
    """Fields within each message."""
    reports_cache: bool = True
    """Whether tokens from a cache are reported; if not, they are charged in full."""


def _plain(usage: Usage, dollars: Decimal) -> JsonObject:
    return usage.as_json()


def _sums(usage: Usage, dollars: Decimal) -> JsonObject:
    return {name: value for name, value in usage.as_json().items() if not name.endswith("_details")}


def _with_cost(usage: Usage, dollars: Decimal) -> JsonObject:
    details = {"upstream_inference_cost": None}
    return usage.as_json() | {"cost": float(dollars), "cost_details": details, "is_byok": False}


def _without_thoughts(usage: Usage, dollars: Decimal) -> JsonObject:
    return _sums(usage, dollars) | {"completion_tokens": usage.completion_tokens - usage.reasoning_tokens}


def _with_hits(usage: Usage, dollars: Decimal) -> JsonObject:
    hits = {"prompt_cache_hit_tokens": usage.cached_tokens}
    misses = {"prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens}
    return _sums(usage, dollars) | hits | misses | {"completion_tokens_details": _reasoning(usage)}


def _with_null_details(usage: Usage, dollars: Decimal) -> JsonObject:
    return _sums(usage, dollars) | {"prompt_tokens_details": _cached(usage)}


def _reasoning_beside(usage: Usage, dollars: Decimal) -> JsonObject:
    return _sums(usage, dollars) | {"prompt_tokens_details": _cached(usage), **_reasoning(usage)}


def _with_characters(usage: Usage, dollars: Decimal) -> JsonObject:
    return _sums(usage, dollars) | {"total_characters": 0}


def _reasoning(usage: Usage) -> JsonObject:
    return {"reasoning_tokens": usage.reasoning_tokens}


def _cached(usage: Usage) -> JsonObject | None:
    return {"cached_tokens": usage.cached_tokens} if usage.cached_tokens else None


_UNFILTERED = {"hate": {"filtered": False, "severity": "safe"}}

MANNERS: Mapping[Provider, Manner] = {
    Provider.OPENAI: Manner(usage=_plain),
    Provider.OPENROUTER: Manner(
        usage=_with_cost, body={"provider": "Upstream"}, choice={"native_finish_reason": "STOP"}
    ),
    Provider.MINIMAX: Manner(
        usage=_with_characters,
        body={"base_resp": {"status_code": 0, "status_msg": ""}, "input_sensitive": False, "output_sensitive": False},
        reports_cache=False,
    ),
    Provider.GEMINI: Manner(usage=_without_thoughts, reports_cache=False),
    Provider.DEEPSEEK: Manner(usage=_with_hits, body={"system_fingerprint": "fp"}),
    Provider.AZURE: Manner(
        usage=_plain,
        body={"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _UNFILTERED}]},
        choice={"content_filter_results": _UNFILTERED},
    ),
    Provider.VLLM: Manner(
        usage=_with_null_details,
        body={"prompt_logprobs": None, "kv_transfer_params": None},
        choice={"stop_reason": None},
        message={"refusal": None, "function_call": None},
    ),
    Provider.SGLANG: Manner(
        usage=_reasoning_beside, body={"metadata": {"weight_version": "default"}}, choice={"matched_stop": 2}
    ),
    Provider.OLLAMA: Manner(usage=_sums, body={"system_fingerprint": "fp_ollama"}, reports_cache=False),
}
