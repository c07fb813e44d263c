from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof.medians import median


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1))
def test_it_is_the_median_of_the_standard_library(values: list[float]) -> None:
    assert statistics.median(values) == median(iter(values))


def test_there_is_none_of_no_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        median([])
