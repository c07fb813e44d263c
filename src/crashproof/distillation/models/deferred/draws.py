"""Initial weights that are drawn when they are needed.

A new model draws the weights of its layers one after the other, some of them twice, from one generator. Here each is
drawn into memory that is given back at once, so that the generator goes on as it always does; what is kept is how the
generator stood before. From that, any process can draw the same weight again, and keep its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from crashproof.distillation.models.deferred.tensor import AbsentTensor, CannotDefer, Source

__all__ = ["DrawingLater", "UndrawnTensor"]

aten = torch.ops.aten

_OVERWRITE = (aten.copy_.default, aten.fill_.Scalar, aten.normal_.default, aten.uniform_.default, aten.zero_.default)
"""Of what was there before, nothing is left."""


class DrawingLater(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so.
    """A context in which new, empty tensors have no memory, and what is drawn into them is noted down.

    Raises:
        CannotDefer: in it, the numbers of such a tensor are needed.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry everything out, but for the making of empty tensors."""
        options = dict(kwargs or {})
        device = options.get("device")
        if func is aten.empty.memory_format and (device is None or torch.device(device).type == "cpu"):
            like = func(*args, **options | {"device": "meta", "pin_memory": False})
            return UndrawnTensor(like, _Drawn(num_elements=like.numel(), dtype=like.dtype))
        return func(*args, **options)


class UndrawnTensor(AbsentTensor):
    """A tensor, or a part of one, that can be changed and not looked at."""

    def __init__(self, like: Tensor, drawn: _Drawn) -> None:
        self.drawn = drawn

    def find_source(self) -> Source:
        """How it was drawn.

        Raises:
            CannotDefer: it never was, or it is a part of another one.
        """
        if self.numel() != self.drawn.num_elements or not self.drawn.is_complete:
            raise CannotDefer("a weight is not drawn as a whole")
        return _DrawnSource(drawn=self.drawn, shape=self.shape)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types a placeholder.
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note down what changes it, and make parts of it."""
        options = dict(kwargs or {})
        target, *others = args
        if not isinstance(target, UndrawnTensor) or any(
            isinstance(each, cls) for each in tree_leaves((others, options))
        ):
            raise CannotDefer(f"{func} looks at weights that have not been drawn yet")
        if func._schema.is_mutable:
            target.drawn.add(_Step(func=func, view=_View.of(target.like), args=tuple(others), options=options))
            return target
        if any(each.alias_info is None for each in func._schema.returns):
            raise CannotDefer(f"{func} looks at a weight that has not been drawn yet")
        parts = func(target.like, *others, **options)
        return tree_map_only(Tensor, lambda part: cls(part, target.drawn), parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A part of a flat tensor."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> _View:
        return cls(size=tensor.size(), stride=tensor.stride(), offset=int(tensor.storage_offset()))

    def within(self, flat: Tensor) -> Tensor:
        return flat.as_strided(self.size, self.stride, self.offset)


@dataclass(slots=True, kw_only=True)
class _Step:
    """One operation on a part of a tensor."""

    func: Any
    view: _View
    args: tuple[Any, ...]
    options: dict[str, Any]
    before: Tensor | None = None
    """The state of the generator, if the operation draws from it."""

    @property
    def draws(self) -> bool:
        return torch.Tag.nondeterministic_seeded in self.func.tags

    def run(self, flat: Tensor) -> None:
        self.func(self.view.within(flat), *self.args, **self.options)


@dataclass(slots=True, kw_only=True)
class _Drawn:
    """What was done to one tensor, in order."""

    num_elements: int
    dtype: torch.dtype
    steps: list[_Step] = field(default_factory=list)
    is_complete: bool = False
    """Whether some step has reached all of it."""

    def add(self, step: _Step) -> None:
        if step.draws:
            step.before = torch.get_rng_state()
            # Only so that the generator goes on.
            step.run(torch.empty(self.num_elements, dtype=self.dtype))
        if step.func in _OVERWRITE and step.view.size.numel() == self.num_elements:
            self.steps.clear()
            self.is_complete = True
        self.steps.append(step)

    def repeat(self) -> Tensor:
        """The numbers, flat; the generator is left as it was."""
        flat = torch.empty(self.num_elements, dtype=self.dtype)
        with torch.random.fork_rng(devices=[]):
            for step in self.steps:
                if step.before is not None:
                    torch.set_rng_state(step.before)
                step.run(flat)
        return flat


@dataclass(frozen=True, slots=True, kw_only=True)
class _DrawnSource:
    """A parameter that is drawn again at each call."""

    drawn: _Drawn
    shape: torch.Size

    def whole(self) -> Tensor:
        return self.drawn.repeat().view(self.shape)

    def rows(self, first: int, last: int) -> Tensor:
        return self.whole()[first:last]
