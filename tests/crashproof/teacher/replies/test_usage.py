"""Tokens, as servers report them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof.teacher.replies.usage import MOST_TOKENS, PartialUsage, Usage, reported_cost

garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(object()),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2)
    ),
    max_leaves=4,
)
counts = st.integers(0, MOST_TOKENS // 2)


@pytest.mark.parametrize(
    "usage, expected",
    [
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 3}, Usage(prompt_tokens=5, completion_tokens=3), id="least"
        ),
        pytest.param(
            {"prompt_tokens": "5", "completion_tokens": 3.0},
            Usage(prompt_tokens=5, completion_tokens=3),
            id="text, float",
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 2.5}, Usage(prompt_tokens=5, completion_tokens=3), id="fraction"
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 2},
            Usage(prompt_tokens=5, completion_tokens=3),
            id="a total below its parts",
        ),
        pytest.param(
            {"prompt_tokens": 5, "total_tokens": 9},
            Usage(prompt_tokens=5, completion_tokens=4),
            id="prompt and total",
        ),
        pytest.param(
            {"completion_tokens": 4, "total_tokens": 9},
            Usage(prompt_tokens=5, completion_tokens=4),
            id="completion and total",
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": None},
            Usage(prompt_tokens=5, completion_tokens=3),
            id="null details",
        ),
        pytest.param(None, None, id="null"),
        pytest.param([], None, id="list"),
        pytest.param({"total_tokens": 5}, None, id="total alone"),
        pytest.param({"prompt_tokens": 5}, None, id="prompt alone"),
        pytest.param({"prompt_tokens": True, "completion_tokens": 3}, None, id="bool"),
        pytest.param({"prompt_tokens": -1, "completion_tokens": 3}, None, id="negative"),
        pytest.param({"prompt_tokens": 10**13, "completion_tokens": 3}, None, id="beyond all measure"),
    ],
)
def test_a_usage_is_read_where_both_sides_are_told(usage, expected):
    assert expected == Usage.read({"id": "c", "usage": usage})


@given(garbage)
def test_reading_garbage_never_raises(value):
    assert Usage.read(value) is None
    Usage.read({"usage": value})
    Usage.read({"usage": {"prompt_tokens": 1, "completion_tokens": value, "prompt_tokens_details": value}})
    reported_cost({"usage": {"cost": value, "cost_details": value}})


@given(counts, counts, st.floats(0, 1), st.floats(0, 1))
def test_a_usage_is_read_back_as_it_was_reported(prompt, completion, cached_share, reasoning_share):
    cached, reasoning = int(prompt * cached_share), int(completion * reasoning_share)
    reported = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }

    expected = Usage(
        prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion, reasoning_tokens=reasoning
    )
    assert expected == Usage.read({"usage": reported})


def test_what_a_half_tells_is_kept():
    assert 5 == PartialUsage.read({"usage": {"prompt_tokens": 5, "completion_tokens": "?"}}).prompt_tokens


@pytest.mark.parametrize(
    "usage, expected",
    [
        pytest.param({"cost": 0.0125}, Decimal("0.0125"), id="number"),
        pytest.param({"cost": "1e-5"}, Decimal("0.00001"), id="text"),
        pytest.param(
            {"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}},
            Decimal("0.21"),
            id="with a key of one's own",
        ),
        pytest.param(
            {"cost": 0.01, "cost_details": {"upstream_inference_cost": 0.2}}, Decimal("0.01"), id="upstream"
        ),
        pytest.param({"cost": 0}, None, id="nothing"),
        pytest.param({"cost": -1}, None, id="negative"),
        pytest.param({"cost": {"total": 1}}, None, id="object"),
        pytest.param(None, None, id="no usage"),
    ],
)
def test_a_providers_own_cost_is_read(usage, expected):
    assert expected == reported_cost({"usage": usage})
