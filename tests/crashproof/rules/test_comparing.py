from __future__ import annotations

import pytest

from crashproof.rules.comparing import common_steps, config_differences


@pytest.mark.parametrize(
    "configs, expected",
    [
        pytest.param([{"a": 1}, {"a": 1}], [], id="equal"),
        pytest.param([{"a": {"b": 1}}, {"a": {"b": 2}}], [("a.b", ("1", "2"))], id="nested"),
        pytest.param([{"a": 1}, {}, {"a": 1}], [("a", ("1", None, "1"))], id="absent-in-one"),
        pytest.param([{"a": None}, {}], [("a", ("null", None))], id="null-is-not-absent"),
        pytest.param([{"a": {}}, {"a": {"b": 1}}], [("a", ("{}", None)), ("a.b", (None, "1"))], id="empty-section"),
        pytest.param([{"a": 1}, {"a": 1.0}], [("a", ("1", "1.0"))], id="kind-of-number"),
        pytest.param(
            [{"b": [1], "a": "x"}, {"a": "y", "b": [1, 2]}],
            [("a", ('"x"', '"y"')), ("b", ("[1]", "[1,2]"))],
            id="sorted",
        ),
        pytest.param([{"a": [{"x": 1, "y": 2}]}, {"a": [{"y": 2, "x": 1}]}], [], id="order-of-keys"),
        pytest.param([{}, {}], [], id="none"),
    ],
)
def test_keys_whose_values_differ(configs, expected):
    assert expected == [(each.key, each.values) for each in config_differences(configs)]


@pytest.mark.parametrize(
    "last_steps, count, expected",
    [
        pytest.param([100, 400], 4, [25, 50, 75, 100], id="shortest"),
        pytest.param([3, 9], 8, [1, 2, 3], id="few"),
        pytest.param([0, 9], 8, [], id="nothing-in-common"),
        pytest.param([], 8, [], id="no-runs"),
    ],
)
def test_steps_that_all_have_reached(last_steps, count, expected):
    assert expected == common_steps(last_steps, count)
