"""What finish reasons mean."""

from __future__ import annotations

import pytest

from crashproof.teacher.replies.endings import Ending, ending_of


@pytest.mark.parametrize(
    "words, expected",
    [
        pytest.param(
            "stop STOP end_turn stop_sequence eos eos_token tool_calls tool_use function_call COMPLETE "
            "FinishReason.STOP FINISH_REASON_STOP toolCalls",
            Ending.COMPLETE,
            id="complete",
        ),
        pytest.param(
            "length LENGTH max_tokens MAX_TOKENS FinishReason.MAX_TOKENS maxTokens max-tokens max_output_tokens "
            "model_length model_context_window_exceeded incomplete",
            Ending.TRUNCATED,
            id="truncated",
        ),
        pytest.param(
            "content_filter CONTENT_FILTER SAFETY RECITATION PROHIBITED_CONTENT SPII BLOCKLIST sensitive refusal "
            "content_filtered guardrail_intervened",
            Ending.FILTERED,
            id="filtered",
        ),
        pytest.param(
            "error ERROR abort cancelled network_error insufficient_system_resource", Ending.FAILED, id="failed"
        ),
        pytest.param("OTHER FINISH_REASON_UNSPECIFIED whatever", Ending.UNKNOWN, id="unknown"),
    ],
)
def test_every_providers_word_is_understood_in_any_spelling(words, expected):
    assert dict.fromkeys(words.split(), expected) == {word: ending_of(word) for word in words.split()}


@pytest.mark.parametrize(
    "reason, expected",
    [(None, Ending.UNSTATED), ("", Ending.UNSTATED), (3, Ending.UNKNOWN), ({"type": "stop"}, Ending.UNKNOWN)],
    ids=str,
)
def test_what_is_no_word_is_no_ending(reason, expected):
    assert expected is ending_of(reason)


def test_only_what_may_be_whole_is_usable_as_it_is():
    assert [Ending.COMPLETE, Ending.UNSTATED] == [ending for ending in Ending if ending.may_be_whole]
