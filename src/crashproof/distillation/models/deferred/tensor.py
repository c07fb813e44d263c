"""Tensors that are computed when they are needed.

`transformers` may rename, join, split or transpose what it finds in a file. Given such tensors instead of real ones,
it does so by itself, and leaves for each weight what has to be done to make it, or some rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["AbsentTensor", "CannotDefer", "DeferredTensor", "Source"]

aten = torch.ops.aten


class CannotDefer(Exception):
    """A weight cannot be left for later; whoever asked for that makes it at once."""


class Source(Protocol):
    """Where the numbers of a tensor come from."""

    def whole(self) -> Tensor:
        """All of them, on the CPU."""
        ...

    def rows(self, first: int, last: int) -> Tensor:
        """Those with these indices of the first dimension, the last one not included."""
        ...


class AbsentTensor(Tensor):
    """A tensor that passes for one on a device, and whose numbers are not in memory."""

    # Else torch would turn numbers that it computes of such a tensor into one.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    like: Tensor
    """On the meta device; of the same shape and type."""

    @staticmethod
    def __new__(cls, like: Tensor, *others: object, device: str = "cpu") -> Self:
        """Further arguments are those of a subclass."""
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=torch.device(device)
        )
        made.like = like
        return made

    def __repr__(self, **options: object) -> str:  # type: ignore[override]  # torch types a name that is mangled.
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype})"

    def find_source(self) -> Source:
        """Where its numbers come from.

        Raises:
            CannotDefer: from nowhere.
        """
        raise CannotDefer("nothing says what it is")


class DeferredTensor(AbsentTensor):
    """A tensor whose numbers are computed at each call of its source.

    What PyTorch makes of it is another such tensor, except where the result depends on the numbers.
    """

    def __init__(self, like: Tensor, source: Source, *, device: str = "cpu") -> None:
        self.source = source

    def find_source(self) -> Source:
        """Its source."""
        return self.source

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types a placeholder.
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note down the operation instead of carrying it out."""
        call = _Call(func=func, args=args, kwargs=dict(kwargs or {}))
        if func._schema.is_mutable:
            raise CannotDefer(f"{func} changes it in place")
        if call.moves_to_cpu():
            return _compact(call.results())
        try:
            shapes = call.shapes()
        except (NotImplementedError, RuntimeError):
            # Without numbers, PyTorch can neither compare nor branch.
            return call.results()
        return _deferred(shapes, call)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """An operation and its arguments, some of which are deferred."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def results(self) -> Any:
        return self.func(*_numbers(self.args), **_numbers(self.kwargs))

    def shapes(self) -> Any:
        kwargs = self.kwargs | ({"device": "meta"} if self.kwargs.get("device") is not None else {})
        return self.func(*_shapes_alone(self.args), **_shapes_alone(kwargs))

    def results_of_rows(self, first: int, last: int) -> Any:
        """The results from these rows, if they need no other rows of the arguments; else None."""
        rule = _RULES.get(self.func)
        args = None if rule is None else rule(self.args, first, last)
        return None if args is None else self.func(*args, **_numbers(self.kwargs))

    def as_rows(self, place: int | None) -> tuple[Tensor, int, int] | None:
        """The argument whose rows, from the first to the last, are this result; None if it is none of a split."""
        if self.func is not aten.split.Tensor or place is None or _is_across(_dim(self.args, 2), self.args[0]):
            return None
        tensor, num_rows = self.args[0], self.args[1]
        return tensor, place * num_rows, min(len(tensor), (place + 1) * num_rows)

    def moves_to_cpu(self) -> bool:
        device = self.kwargs.get("device")
        return device is not None and torch.device(device).type == "cpu" and self.device == "meta"

    @property
    def device(self) -> str:
        """That of the deferred tensors among the arguments."""
        found: list[str] = []
        tree_map_only(DeferredTensor, lambda each: found.append(each.device.type), (self.args, self.kwargs))
        return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """One of the results of an operation."""

    call: _Call
    place: int | None
    """Among several."""

    def whole(self) -> Tensor:
        part = self.call.as_rows(self.place)
        return self._own(self.call.results()) if part is None else _rows_of(*part)

    def rows(self, first: int, last: int) -> Tensor:
        if part := self.call.as_rows(self.place):
            tensor, begin, _ = part
            return _rows_of(tensor, begin + first, begin + last)
        results = self.call.results_of_rows(first, last)
        return self.whole()[first:last] if results is None else self._own(results)

    def _own(self, results: Any) -> Tensor:
        result: Tensor = results if self.place is None else results[self.place]
        return result


def _deferred(shapes: Any, call: _Call) -> Any:
    if isinstance(shapes, Tensor):
        return DeferredTensor(shapes, _Computed(call=call, place=None), device=call.device)
    if not isinstance(shapes, (list, tuple)):
        return shapes
    return type(shapes)(
        DeferredTensor(each, _Computed(call=call, place=place), device=call.device)
        for place, each in enumerate(shapes)
    )


def _compact(tensor: Tensor) -> Tensor:
    """The numbers without the rest of the memory that they are a part of."""
    return tensor if tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.clone()


def _numbers(values: Any) -> Any:
    return tree_map_only(DeferredTensor, lambda each: each.source.whole(), values)


def _shapes_alone(values: Any) -> Any:
    return tree_map_only(DeferredTensor, lambda each: each.like, values)


Rule = Callable[[tuple[Any, ...], int, int], tuple[Any, ...] | None]
"""The arguments of which an operation makes some rows of its result; None where there are none."""


def _rows_of(tensor: Any, first: int, last: int) -> Tensor:
    rows: Tensor = tensor.source.rows(first, last) if isinstance(tensor, DeferredTensor) else tensor[first:last]
    return rows


def _of_first(args: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...] | None:
    return None if args[0].dim() == 0 else (_rows_of(args[0], first, last), *args[1:])


def _of_stack(args: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...] | None:
    tensors, dim = args[0], _dim(args, 1)
    return (_numbers(list(tensors[first:last])), dim) if dim == 0 and first < last else None


def _of_cat(args: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...] | None:
    tensors, dim = args[0], _dim(args, 1)
    return ([_rows_of(each, first, last) for each in tensors], dim) if _is_across(dim, tensors[0]) else None


def _of_split(args: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...] | None:
    tensor, size, dim = args[0], args[1], _dim(args, 2)
    return (_rows_of(tensor, first, last), size, dim) if _is_across(dim, tensor) else None


def _of_transpose(args: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...] | None:
    tensor, *dims = args
    is_across = all(_is_across(each, tensor) for each in dims)
    return (_rows_of(tensor, first, last), *dims) if is_across else None


def _dim(args: tuple[Any, ...], place: int) -> int:
    """The dimension among the arguments; it may be left out."""
    return args[place] if len(args) > place else 0


def _is_across(dim: int, tensor: Tensor) -> bool:
    """Whether a dimension is another than that of the rows."""
    return dim % max(1, tensor.dim()) != 0


_SAME_ROWS: Sequence[Any] = (
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.lift_fresh.default,
    aten._to_copy.default,
)
_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_SAME_ROWS, _of_first),
    aten.cat.default: _of_cat,
    aten.split.Tensor: _of_split,
    aten.stack.default: _of_stack,
    aten.transpose.int: _of_transpose,
}
"""Whatever is not among them is computed whole, and its rows are taken from that."""
