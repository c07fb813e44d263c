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
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from crashproof.distillation.models.deferred.tensor import CannotDefer, Source

__all__ = ["RecordedDraws"]

aten = torch.ops.aten

_OVERWRITE = (aten.normal_.default, aten.uniform_.default, aten.zero_.default, aten.fill_.Scalar)
"""Of what was there before, nothing is left."""


class RecordedDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so.
    """A context in which new, empty tensors have no memory, and what is drawn into them is noted down.

    A tensor that is drawn and then moved to the meta device, beside weights that are there, is kept as it was.

    Raises:
        CannotDefer: in it, the numbers of a tensor without memory are needed.
    """

    def __init__(self, *, defers_all: bool = True) -> None:
        """Else new tensors get their memory, and only what is moved is kept."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._defers_all = defers_all
        self._drawn: dict[int, _Drawn] = {}
        """By the identity of a storage."""

    def source(self, parameter: nn.Parameter) -> Source | None:
        """How a parameter was drawn; None if it has memory of its own."""
        drawn = self._of(parameter)
        if drawn is not None and parameter.numel() != drawn.num_elements:
            raise CannotDefer("a parameter is a part of another tensor")
        return None if drawn is None else _DrawnSource(drawn=drawn, shape=parameter.shape)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Record what concerns such tensors; carry out the rest."""
        options = dict(kwargs or {})
        if func is aten.empty.memory_format and self._defers_all and _is_on_cpu(options.get("device")):
            return self._without_memory(func(*args, **options | {"device": "meta", "pin_memory": False}))
        if func is aten._to_copy.default and _is_on_meta(options.get("device")) and not args[0].is_meta:
            return self._keep(func(*args, **options), args[0])
        if all(self._of(each) is None for each in _tensors((args, options))):
            return func(*args, **options)
        if func._schema.is_mutable:
            self._record(func, args, options)
            return args[0]
        made = func(*args, **options)
        if any(self._of(each) is None for each in _tensors(made)):
            raise CannotDefer(f"{func} looks at weights that have not been drawn yet")
        return made

    def _without_memory(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._drawn[storage._cdata] = _Drawn(storage=storage, num_elements=tensor.numel(), dtype=tensor.dtype)
        return tensor

    def _keep(self, tensor: Tensor, numbers: Tensor) -> Tensor:
        self._without_memory(tensor)
        self._record(aten.copy_.default, (tensor, numbers.detach()), {})
        return tensor

    def _of(self, tensor: Any) -> _Drawn | None:
        is_plain = isinstance(tensor, Tensor) and type(tensor) in (Tensor, nn.Parameter) and tensor.is_meta
        return self._drawn.get(tensor.untyped_storage()._cdata) if is_plain else None

    def _record(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        target, *others = args
        drawn = self._of(target)
        if drawn is None or any(self._of(each) is not None for each in _tensors((others, options))):
            raise CannotDefer(f"{func} copies weights that have not been drawn yet")
        drawn.add(_Step(func=func, view=_View.of(target), args=tuple(others), options=options))


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A part of a storage."""

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
    """One operation on a part of a storage."""

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
    """What was done to one storage, in order."""

    storage: torch.UntypedStorage
    """Kept, so that no other one has its identity."""
    num_elements: int
    dtype: torch.dtype
    steps: list[_Step] = field(default_factory=list)

    def add(self, step: _Step) -> None:
        if step.draws:
            step.before = torch.get_rng_state()
            # Only so that the generator goes on.
            step.run(torch.empty(self.num_elements, dtype=self.dtype))
        if step.func in _OVERWRITE and step.view.size.numel() == self.num_elements:
            self.steps.clear()
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


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(values) if isinstance(each, Tensor)]


def _is_on_cpu(device: Any) -> bool:
    return device is None or torch.device(device).type == "cpu"


def _is_on_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"
