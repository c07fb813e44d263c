from __future__ import annotations

import pytest

from crashproof.rules.agreement.differences import RankNames, differences


def in_words(descriptions, hosts=None):
    names = RankNames(hosts=hosts or ["host-a"] * len(descriptions))
    return [each.in_words(names) for each in differences(descriptions)]


@pytest.mark.parametrize(
    "descriptions, expected",
    [
        pytest.param([{"a": "1"}, {"a": "1"}], [], id="equal"),
        pytest.param([{"a": "1"}, {"a": "2"}], ["a: 1 on rank 0, 2 on rank 1"], id="one-of-two"),
        pytest.param([{"a": "1"}] * 3 + [{"a": "2"}], ["a: 2 on rank 3, 1 on ranks 0-2"], id="the-rarest-first"),
        pytest.param(
            [{"a": "1"}, {"a": "2"}, {"a": "1"}, {"a": "2"}, {"a": "1"}],
            ["a: 2 on ranks 1, 3, 1 on ranks 0, 2, 4"],
            id="ranks-that-are-not-consecutive",
        ),
        pytest.param([{"a": "1"}, {}], ["a: 1 on rank 0, (absent) on rank 1"], id="absent"),
        pytest.param(
            [{"b": "1", "a": "1"}, {"b": "2", "a": "2", "c": "3"}],
            ["b: 1 on rank 0, 2 on rank 1", "a: 1 on rank 0, 2 on rank 1", "c: (absent) on rank 0, 3 on rank 1"],
            id="in-the-order-of-the-names",
        ),
        pytest.param(
            [{"seed": str(rank)} for rank in range(6)],
            ["seed: 0 on rank 0, 1 on rank 1, 2 on rank 2 and 3 other value(s)"],
            id="many-values",
        ),
        pytest.param(
            [{"key": "(secret 1f2e)"}, {"key": "(secret 99aa)"}],
            ["key: differs between rank 0 and rank 1 (hidden)"],
            id="a-secret",
        ),
        pytest.param(
            [{"a": "x" * 100}, {"a": "short"}],
            [f"a: {'x' * 60}…{'x' * 19} on rank 0, short on rank 1"],
            id="a-long-value",
        ),
        pytest.param(
            [{"a": "x" * 70 + middle + "x" * 30} for middle in "12"],
            ["a: differs between rank 0 and rank 1 (hidden)"],
            id="long-values-that-look-alike",
        ),
    ],
)
def test_what_differs_is_named_with_its_values_and_ranks(descriptions, expected):
    assert expected == in_words(descriptions)


@pytest.mark.parametrize(
    "hosts, expected",
    [
        pytest.param(["a", "a", "b", "b"], "x: 1 on ranks 0-1 (a), 2 on ranks 2-3 (b)", id="one-host-each"),
        pytest.param(["a", "b", "c", "c"], "x: 1 on ranks 0-1, 2 on ranks 2-3 (c)", id="some-on-several"),
        pytest.param(["a"] * 4, "x: 1 on ranks 0-1, 2 on ranks 2-3", id="all-on-one"),
    ],
)
def test_hosts_are_named_where_there_are_several(hosts, expected):
    descriptions = [{"x": "1"}, {"x": "1"}, {"x": "2"}, {"x": "2"}]

    assert [expected] == in_words(descriptions, hosts)
