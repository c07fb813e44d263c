"""How an answer ended."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

__all__ = ["Ending", "ending_of"]


class Ending(StrEnum):
    """What a `finish_reason` means, whatever its provider calls it."""

    COMPLETE = "complete"
    """The model ended by itself, at a stop sequence, or with a call of a tool."""
    TRUNCATED = "truncated"
    """A limit was reached in mid-answer."""
    FILTERED = "filtered"
    """The provider withheld the answer, or the rest of it."""
    FAILED = "failed"
    """The generation broke off with an error."""
    UNSTATED = "unstated"
    """The server does not say."""
    UNKNOWN = "unknown"
    """The server says a word that is not known here."""

    @property
    def may_be_whole(self) -> bool:
        """Whether nothing speaks against the answer's being complete."""
        return self in (Ending.COMPLETE, Ending.UNSTATED)


_WORDS = {
    Ending.COMPLETE: """
        complete completed done end end_of_sequence end_of_text end_of_turn end_turn eos eos_token eot finish finished
        function_call function_calls natural stop stop_sequence stop_str stop_token stopped success tool_call
        tool_calls tool_use
    """,
    Ending.TRUNCATED: """
        context_length context_length_exceeded incomplete interrupted length length_capped limit max_completion_tokens
        max_length max_new_tokens max_output_tokens max_tokens model_context_window_exceeded model_length
        partial pause_turn time_limit timeout token_limit too_long truncated
    """,
    Ending.FILTERED: """
        blocked blocklist content_blocked content_filter content_filtered content_policy_violation filtered
        guardrail_intervened image_safety language moderation prohibited_content recitation refusal safety sensitive
        spii violation
    """,
    Ending.FAILED: """
        abort aborted cancel canceled cancelled engine_error error error_toxic exception failed failure
        insufficient_system_resource internal_error network_error server_error
    """,
}
"""Of OpenAI, Anthropic, Gemini, Bedrock, Cohere, DeepSeek, Mistral, MiniMax, Zhipu, vLLM, SGLang, TGI, Ollama."""

_ENDING_OF = {word: ending for ending, words in _WORDS.items() for word in words.split()}
_PREFIX = re.compile(r"^(finish_?reason|stop_?reason)[._:]*")


def ending_of(finish_reason: object) -> Ending:
    """What a `finish_reason` means; spelling and case do not matter."""
    if finish_reason is None or finish_reason == "":
        return Ending.UNSTATED
    if not isinstance(finish_reason, str):
        return Ending.UNKNOWN
    return _ENDING_OF.get(_normalized(finish_reason), Ending.UNKNOWN)


@lru_cache(maxsize=256)
def _normalized(word: str) -> str:
    # camelCase, kebab-case and the names of enums: maxTokens, content-filter, FinishReason.MAX_TOKENS.
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word.strip())
    return _PREFIX.sub("", re.sub(r"[\s-]+", "_", parted).lower())
