from __future__ import annotations

import numpy as np
import pytest

from crashproof.tracking.witness.samples import samples_of

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    "batch, expected",
    [
        ([3, 1, 2], ["3", "1", "2"]),
        (["a", "b"], ["'a'", "'b'"]),
        (np.array([3, 1]), ["3", "1"]),
        (torch.tensor([3, 1]), ["3", "1"]),
        ([[3, 1], [2]], ["3", "1", "2"]),
        ([torch.tensor([3, 1]), torch.tensor([2])], ["3", "1", "2"]),
        (7, ["7"]),
        ([], []),
    ],
)
def test_ids_are_samples(batch, expected):
    assert expected == samples_of(batch)


@pytest.mark.parametrize(
    "batch, num_samples",
    [
        pytest.param(torch.zeros(4, 2), 4, id="rows"),
        pytest.param({"x": torch.zeros(4, 2), "y": torch.zeros(4), "note": "a"}, 4, id="fields"),
        pytest.param([torch.zeros(4, 2), torch.zeros(4)], 4, id="pair"),
        pytest.param([{"x": torch.zeros(4)}, {"x": torch.zeros(2)}], 6, id="smaller-batches"),
        pytest.param({"x": torch.zeros(4), "y": torch.zeros(3)}, 1, id="fields-of-several-lengths"),
        pytest.param({"note": "a"}, 1, id="no-arrays"),
        pytest.param(torch.zeros(()), 1, id="one-number"),
        pytest.param(torch.zeros(0, 2), 1, id="no-rows"),
        pytest.param(np.zeros((70_000, 1), dtype=np.int8), 1, id="very-many-rows"),
    ],
)
def test_rows_are_samples(batch, num_samples):
    assert num_samples == len(samples_of(batch))


def test_a_sample_is_known_again_in_another_place():
    first, second = torch.rand(3, 2), torch.rand(3, 2)
    second[0] = first[2]

    assert samples_of(first)[2] == samples_of(second)[0]
    assert 5 == len({*samples_of(first), *samples_of(second)})
