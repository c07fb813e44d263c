from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from crashproof.distillation.models.deferred.tensor import CannotDefer, DeferredTensor


@dataclass
class Recorded:
    """A source that remembers which rows it was asked for."""

    numbers: Tensor
    asked: list[tuple[int, int] | None] = field(default_factory=list)

    def whole(self) -> Tensor:
        self.asked.append(None)
        return self.numbers

    def rows(self, first: int, last: int) -> Tensor:
        self.asked.append((first, last))
        return self.numbers[first:last]


def recorded(*shape: int, start: int = 0) -> Recorded:
    numbers = torch.arange(start, start + int(torch.tensor(shape).prod()), dtype=torch.float32)
    return Recorded(numbers.reshape(shape).to(torch.bfloat16))


def deferred(source: Recorded, device: str = "cpu") -> DeferredTensor:
    return DeferredTensor(torch.empty_like(source.numbers, device="meta"), source, device=device)


PIECEMEAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as it is": lambda one, other: one[...],
    "in another type": lambda one, other: one.to(device="cpu", dtype=torch.float32),
    "a copy": lambda one, other: one.clone(),
    "detached": lambda one, other: one.detach(),
    "joined beside each other": lambda one, other: torch.cat([one, other], dim=1),
    "joined beside each other, from the end": lambda one, other: torch.cat([one, other], dim=-1),
    "transposed behind the rows": lambda one, other: one.transpose(1, 2).contiguous(),
    "halves of each row": lambda one, other: torch.chunk(one, 2, dim=1)[1].contiguous(),
    "all of it at once": lambda one, other: torch.cat([one, other], dim=1).transpose(1, 2).to(torch.float32),
}
WHOLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "joined one after the other": lambda one, other: torch.cat([one, other]),
    "transposed": lambda one, other: one.transpose(0, 1).contiguous(),
    "in another shape": lambda one, other: one.reshape(8, -1),
    "added up": lambda one, other: one + other,
}


@pytest.mark.parametrize("name", [*PIECEMEAL, *WHOLE])
def test_rows_are_those_of_the_whole(name: str) -> None:
    operation = (PIECEMEAL | WHOLE)[name]
    one, other = recorded(4, 6, 2), recorded(4, 6, 2, start=100)

    made = operation(deferred(one), deferred(other))

    assert isinstance(made, DeferredTensor)
    expected = operation(one.numbers, other.numbers)
    assert [] == one.asked == other.asked, "nothing has been read yet"
    assert (expected.shape, expected.dtype) == (made.shape, made.dtype)
    assert torch.equal(expected, made.source.whole())
    for first, last in ((0, 1), (1, 4), (2, 3)):
        assert torch.equal(expected[first:last], made.source.rows(first, last))


@pytest.mark.parametrize("name", PIECEMEAL)
def test_what_leaves_rows_alone_reads_no_others(name: str) -> None:
    one, other = recorded(4, 6, 2), recorded(4, 6, 2)
    made = PIECEMEAL[name](deferred(one), deferred(other))
    assert isinstance(made, DeferredTensor)

    made.source.rows(1, 3)

    assert {(1, 3)} == {*one.asked, *other.asked}


def test_of_stacked_tensors_only_those_of_the_rows_are_read() -> None:
    sources = [recorded(3, 2, start=10 * number) for number in range(4)]
    made = torch.stack([deferred(each) for each in sources])
    assert isinstance(made, DeferredTensor)

    rows = made.source.rows(1, 3)

    assert torch.equal(torch.stack([each.numbers for each in sources])[1:3], rows)
    assert [[], [None], [None], []] == [each.asked for each in sources]


def test_a_part_of_a_split_reads_its_own_rows() -> None:
    source = recorded(5, 6)
    parts = torch.split(torch.chunk(deferred(source), 2, dim=1)[0], 2)
    expected = torch.split(torch.chunk(source.numbers, 2, dim=1)[0], 2)

    assert [part.shape for part in expected] == [part.shape for part in parts]
    for part, numbers in zip(parts, expected, strict=True):
        assert isinstance(part, DeferredTensor)
        assert torch.equal(numbers, part.source.whole())
        assert torch.equal(numbers[1:], part.source.rows(1, len(part)))
    assert None not in source.asked
    assert (4, 5) in source.asked


def test_a_comparison_looks_at_the_numbers() -> None:
    one, same, other = recorded(2, 2), recorded(2, 2), recorded(2, 2, start=1)

    assert torch.equal(deferred(one), deferred(same))
    assert not torch.equal(deferred(one), deferred(other))
    assert bool((deferred(one) == one.numbers).all())


def test_a_change_in_place_is_refused() -> None:
    with pytest.raises(CannotDefer, match="in place"):
        deferred(recorded(2, 2)).zero_()


def test_one_that_passes_for_a_meta_tensor_is_computed_when_it_is_moved() -> None:
    source = recorded(4, 6)
    part = torch.chunk(deferred(source, device="meta"), 2, dim=1)[1]

    moved = part.to("cpu")

    assert type(moved) is Tensor
    assert torch.equal(source.numbers[:, 3:], moved)
    # It does not keep alive what it was a part of.
    assert moved.nbytes == moved.untyped_storage().nbytes()


def test_its_text_names_shape_and_type_and_reads_nothing() -> None:
    source = recorded(2, 3)

    assert "DeferredTensor((2, 3), torch.bfloat16)" == repr(deferred(source))
    assert [] == source.asked
