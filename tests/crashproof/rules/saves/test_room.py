from __future__ import annotations

import pytest

from crashproof.rules.saves.room import checkpoints_to_come


@pytest.mark.parametrize(
    "num_saves, most_kept, num_present, expected",
    [
        pytest.param(100, 3, 0, 4, id="one-more-than-the-rule-keeps"),
        pytest.param(100, 3, 3, 1, id="those-are-there"),
        pytest.param(100, 3, 9, 1, id="more-are-there"),
        pytest.param(2, 3, 0, 2, id="the-run-ends-before"),
        pytest.param(100, None, 5, 100, id="all-are-kept"),
        pytest.param(None, 3, 1, 3, id="unknown-how-many"),
        pytest.param(None, None, 0, None, id="no-bound"),
    ],
)
def test_how_many_checkpoints_are_to_come(num_saves, most_kept, num_present, expected):
    assert expected == checkpoints_to_come(num_saves=num_saves, most_kept=most_kept, num_present=num_present)
