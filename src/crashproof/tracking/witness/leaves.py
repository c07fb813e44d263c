"""Digest nested state by name.

Two states are equal, bit for bit, if all their leaves are. Neither torch nor NumPy is imported: what has their kinds
of values has imported them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from crashproof.plain_values import as_text, named_fields

__all__ = ["Leaves", "digest_of_bytes", "is_array", "leaves_of"]

_DIGITS = 16
_LONGEST_TEXT = 40
"""Of a value that stands for itself; a longer one is digested."""
_DEEPEST = 16
_MOST_ELEMENTS = 64
"""Of a list of plain values that are named one by one; a longer one is one leaf."""


class Leaves:
    """The leaves of a state, and what could not be read."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        """Digests, or short values themselves, by dotted name."""
        self.unreadable: dict[str, str] = {}
        """The kinds of values that nothing can be said of, by name."""

    def add(self, name: str, value: object, depth: int = _DEEPEST) -> None:
        """Add the leaves of a value under a name; never raises."""
        try:
            self._add(name, value, depth)
        except Exception as error:
            # Whatever the object's own methods raise.
            self.unreadable[name] = f"{type(value).__name__} ({error})"

    def _add(self, name: str, value: Any, depth: int) -> None:
        text = _plain_text(value)
        if text is not None:
            self.values[name] = text
        elif is_array(value):
            self.values[name] = _digest_of_array(value)
        elif not depth:
            self.unreadable[name] = "nested too deeply"
        else:
            self._add_nested(name, value, depth - 1)

    def _add_nested(self, name: str, value: Any, depth: int) -> None:
        state = _state_of(value)
        if state is None:
            self.unreadable[name] = type(value).__name__
            return
        if isinstance(state, Mapping):
            children: Iterable[tuple[str, object]] = [(as_text(key), child) for key, child in state.items()]
        elif len(state) > _MOST_ELEMENTS and all(_plain_text(each) is not None for each in state):
            self.values[name] = digest_of_bytes("\0".join(map(str, map(_plain_text, state))).encode())
            return
        else:
            children = [(str(place), child) for place, child in enumerate(state)]
        for key, child in children:
            self.add(f"{name}.{key}" if name else key, child, depth)


def leaves_of(components: Mapping[str, object]) -> Leaves:
    """The leaves of components by name: modules, optimizers, schedules, generators, containers, arrays, numbers."""
    leaves = Leaves()
    for name, component in components.items():
        leaves.add(name, component)
    return leaves


def is_array(value: object) -> bool:
    """Whether a value is a tensor or an array."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def digest_of_bytes(*parts: Any) -> str:
    """The digest of bytes-like objects in their order, each with its size."""
    digest = hashlib.sha256()
    for part in parts:
        view = memoryview(part)
        digest.update(b"%d " % view.nbytes)
        digest.update(view)
    return digest.hexdigest()[:_DIGITS]


def _digest_of_array(value: Any) -> str:
    array = value
    if hasattr(array, "to_local"):
        # Of a sharded tensor, this process's part.
        array = array.to_local()
    if hasattr(array, "detach"):
        array = _bytes_of_tensor(array)
    elif not array.flags.c_contiguous:
        array = array.copy(order="C")
    if getattr(value.dtype, "hasobject", False):
        raise TypeError("an array of objects, whose bytes are addresses")
    kind = f"{value.dtype} {tuple(value.shape)}".encode()
    return digest_of_bytes(kind, memoryview(array).cast("B") if math.prod(value.shape) else b"")


def _bytes_of_tensor(tensor: Any) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # NumPy lacks some of torch's types; bytes it has.
    return flat.view(flat.new_empty(0).byte().dtype).numpy() if flat.numel() else flat.byte().numpy()


def _plain_text(value: object) -> str | None:
    """A number, a text or nothing as a text of its own; None for anything else."""
    if value is None or isinstance(value, (bool, int, float, complex)):
        text = repr(value)
    elif isinstance(value, str):
        text = repr(as_text(value))
    elif isinstance(value, (bytes, bytearray)):
        return digest_of_bytes(value)
    else:
        return None
    return text if len(text) <= _LONGEST_TEXT else digest_of_bytes(text.encode())


def _state_of(value: Any) -> Mapping[Any, object] | list[object] | None:
    """What an object consists of; None if it does not tell."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    for ask in (_tensors_of_module, _state_dict_of, named_fields, _state_of_generator):
        state = ask(value)
        if state is not None:
            return state
    return None


def _tensors_of_module(value: Any) -> Mapping[Any, object] | None:
    """What training changes of a torch module; unlike its `state_dict`, no other process has to take part."""
    if isinstance(value, type) or not callable(getattr(value, "named_buffers", None)):
        return None
    trained = {name: each for name, each in value.named_parameters() if each.requires_grad}
    return trained | dict(value.named_buffers())


def _state_dict_of(value: Any) -> Mapping[Any, object] | None:
    state_dict = getattr(value, "state_dict", None)
    found = state_dict() if callable(state_dict) and not isinstance(value, type) else None
    return found if isinstance(found, Mapping) else None


def _state_of_generator(value: Any) -> Mapping[Any, object] | None:
    """The state of a random generator of Python, NumPy or torch."""
    for name in ("getstate", "get_state"):
        method = getattr(value, name, None)
        if callable(method) and not isinstance(value, type):
            return {"state": method()}
    generator = getattr(value, "bit_generator", None)
    state = getattr(generator, "state", None)
    return state if isinstance(state, Mapping) else None
