"""Windows of data that are left out of an order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof.records.bad_steps import DataWindow
from crashproof.rules.bad_steps.left_out import joined, position_after, windows_of

WINDOWS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: DataWindow(pair[0], pair[0] + pair[1])),
    max_size=6,
)


@pytest.mark.parametrize(
    "windows, expected",
    [
        ([], []),
        ([(4, 4)], []),
        ([(8, 12), (0, 4)], [(0, 4), (8, 12)]),
        ([(0, 4), (4, 8)], [(0, 8)]),
        ([(0, 8), (2, 4)], [(0, 8)]),
        ([(0, 4), (2, 9)], [(0, 9)]),
    ],
)
def test_windows_are_joined(windows: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert [DataWindow(*each) for each in expected] == joined(DataWindow(*each) for each in windows)


@given(WINDOWS, st.integers(0, 80), st.integers(0, 30))
def test_positions_are_those_of_an_order_without_the_windows(
    windows: list[DataWindow], consumed: int, count: int
) -> None:
    gone = {position for each in windows for position in range(each.first, each.end)}
    left = [position for position in range(300) if position not in gone]

    left_out = joined(windows)
    found = windows_of(consumed, count, left_out)

    assert left[consumed] == position_after(consumed, left_out)
    assert left[consumed : consumed + count] == [
        position for each in found for position in range(each.first, each.end)
    ]
    assert found == joined(found)
