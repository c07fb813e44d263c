from __future__ import annotations

import pytest

from crashproof.rules.agreement.running import RunningReport, ranks_astray


def reports(orders: str, parts: str, nexts: str, weights: str = "", states: str = ""):
    """One letter for each rank: its order, its own part, what it expects of the next rank, its weights, its state."""
    num_ranks = len(orders)
    of_ranks = zip(orders, parts, nexts, weights or "w" * num_ranks, states or "s" * num_ranks, strict=True)
    return [
        RunningReport(of_all=order, own=own, of_next=after, weights=each, state=state)
        for order, own, after, each, state in of_ranks
    ]


@pytest.mark.parametrize(
    "given, expected",
    [
        pytest.param(reports("ooo", "abc", "bca"), [], id="each-its-own-part"),
        pytest.param(reports("o", "a", "a"), [], id="one-process"),
        pytest.param(reports("oxo", "abc", "bca"), [1], id="another-order"),
        pytest.param(reports("ox", "ab", "ba"), [1], id="of-two-orders-the-main-process-counts"),
        pytest.param(reports("xoo", "abc", "bca"), [0], id="the-main-process-alone"),
        pytest.param(reports("ooo", "abx", "bca"), [2], id="another-part"),
        pytest.param(reports("ooo", "xbc", "bca"), [0], id="another-part-of-the-main-process"),
        pytest.param(reports("oox", "xbc", "bca"), [2], id="another-order-explains-all-else"),
    ],
)
def test_ranks_that_took_other_samples_are_found(given, expected):
    assert expected == ranks_astray(given)[0]
    assert bool(expected) is ("samples" in ranks_astray(given)[1])


@pytest.mark.parametrize(
    "weights, expected",
    [("wxw", [1]), ("xww", [0]), ("wxy", [1, 2])],
    ids=["one", "main", "all"],
)
def test_ranks_with_other_weights_are_found(weights, expected):
    assert (expected, "came to other weights than the others") == ranks_astray(reports("ooo", "abc", "bca", weights))


def test_another_state_is_named_before_what_follows_from_it():
    given = reports("oxo", "abc", "bca", "wxw", "sxs")

    assert ([1], "had other settings or counters than the others") == ranks_astray(given)
