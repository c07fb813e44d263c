from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crashproof.pytorch.checksum import _sum_of, checksum_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]


def flipped(tensor: Tensor, place: int) -> Tensor:
    """The same with the lowest bit of one element flipped."""
    changed = tensor.clone()
    changed.view(torch.uint8)[place * tensor.element_size()] ^= 1
    return changed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_makes_another_checksum_on_the_host_and_on_a_device(dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 100).to(dtype)

    changed = [tensor, *(flipped(tensor, place) for place in range(len(tensor)))]

    assert len(changed) == len({checksum_of([each]) for each in changed})
    assert len(changed) == len({int(_sum_of(each)) for each in changed})


def test_two_values_that_change_places_make_another_checksum() -> None:
    tensor, swapped = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])

    assert checksum_of([tensor]) != checksum_of([swapped])
    assert int(_sum_of(tensor)) != int(_sum_of(swapped))
    assert checksum_of([tensor, swapped]) != checksum_of([swapped, tensor])


def test_the_sum_of_a_large_tensor_is_that_of_its_parts_in_their_places() -> None:
    tensor = torch.arange((1 << 24) + 5, dtype=torch.int32)
    factor = 6364136223846793005

    expected = sum(value * (2 * factor * place + 1) for place, value in enumerate(range(5)))

    assert (expected - int(_sum_of(tensor[:5]))) % 2**64 == 0
    last = tensor.clone()
    last[-1] += 1
    assert (int(_sum_of(last)) - int(_sum_of(tensor)) - (2 * factor * (len(tensor) - 1) + 1)) % 2**64 == 0


@pytest.mark.parametrize("shape", [(0,), (), (2, 3)], ids=str)
def test_a_tensor_of_any_shape_has_one_on_the_host_and_on_a_device(shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape).movedim(0, -1) if shape else torch.ones(shape)

    assert checksum_of([tensor]) == checksum_of([tensor.clone()])
    assert int(_sum_of(tensor)) == int(_sum_of(tensor.clone()))
