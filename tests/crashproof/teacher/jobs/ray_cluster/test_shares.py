"""The limits of a job, divided among machines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof.teacher.client.limits import Limits
from crashproof.teacher.jobs.ray_cluster.shares import most_shares, shares_of

some = st.integers(1, 10_000)


@given(concurrency=some, requests=st.none() | some, tokens=st.none() | some, count=st.integers(1, 200))
def test_shares_add_up_and_none_is_empty(
    concurrency: int, requests: int | None, tokens: int | None, count: int
) -> None:
    limits = Limits(concurrency=concurrency, requests_per_minute=requests, tokens_per_minute=tokens)

    shares = shares_of(limits, min(count, most_shares(limits)))

    for name in ("concurrency", "requests_per_minute", "tokens_per_minute"):
        parts, whole = [getattr(share, name) for share in shares], getattr(limits, name)
        if whole is None:
            assert {None} == set(parts)
        else:
            assert whole == sum(parts)
            assert 0 < min(parts) <= max(parts) <= min(parts) + 1


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        (Limits(concurrency=16), 16),
        (Limits(concurrency=16, requests_per_minute=3), 3),
        (Limits(concurrency=16, tokens_per_minute=2), 2),
    ],
    ids=["concurrency", "requests a minute", "tokens a minute"],
)
def test_the_smallest_limit_says_how_many_machines_can_share(limits: Limits, most: int) -> None:
    assert most == most_shares(limits)
