"""Convert what training loops pass to numbers.

A loss may be a float, a Decimal, a NumPy scalar or a 0-d tensor of any framework. The caller's thread never waits for
one on a CUDA device: its copy to the host is queued behind the kernels that compute it, and the number is read once
the copy has arrived.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct, field

from crashproof.errors import InvalidMetric
from crashproof.plain_values import as_text, distinct_names, named_fields

__all__ = [
    "LARGEST_INT",
    "FlatNumbers",
    "PendingScalar",
    "as_amount",
    "as_float",
    "as_int",
    "flat_numbers",
    "is_device_scalar",
    "is_on_device",
    "start_copy",
]

LARGEST_INT = 2**63 - 1
"""Other programs that read the journals use signed 64-bit integers."""
_MOST_ELEMENTS = 32
"""Of a list or an array whose elements become numbers of their own."""
_DEEPEST = 16


class PendingScalar(Protocol):
    """A number that is being copied from a device."""

    def is_ready(self) -> bool:
        """Whether `value` returns at once."""
        ...

    def value(self) -> float:
        """The number; waits for it."""
        ...


def as_float(value: Any, name: str) -> float:
    """A Python float.

    Raises:
        InvalidMetric: `value` is not a single real number.
    """
    if type(value) is float:
        return value
    try:
        return _float_of(value.item() if hasattr(value, "item") else value)
    except Exception as error:
        # Whatever the object's own methods raise.
        raise InvalidMetric(
            f"{name} must be one number, got {_describe(value)}.", hint="Pass a float or a 0-d tensor."
        ) from error


def as_int(value: Any, name: str) -> int:
    """A Python int that is not negative and fits into signed 64 bits.

    Raises:
        InvalidMetric: `value` is not a whole number, negative, or too large.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
        whole = as_float(value, name)
        if whole.is_integer():
            number = int(whole)
    if not 0 <= number <= LARGEST_INT:
        raise InvalidMetric(
            f"{name} must be a whole number of at least 0, got {_describe(value)}.", hint="Pass an int."
        )
    return number


class FlatNumbers(Struct):
    """The numbers in a nested structure."""

    numbers: dict[str, object] = field(default_factory=dict)
    """By name, nested names joined with `/`: floats, and scalars that are still on a device."""
    left_out: dict[str, str] = field(default_factory=dict)
    """By name, what the rest is, such as `str 'good'`."""
    renamed: dict[str, str] = field(default_factory=dict)
    """By the name given instead, each name that is no text, cannot be written, or was taken."""


def flat_numbers(values: object) -> FlatNumbers:
    """The numbers in a mapping of any depth, or in an object with named fields; never raises.

    Lists and arrays of at most 32 elements count as nested, by index. Nothing waits for a device.
    """
    flat = FlatNumbers()
    try:
        fields = named_fields(values)
        if fields is None:
            flat.left_out["values"] = _describe(values)
        else:
            _collect(flat, "", fields, (id(values),))
    except Exception as error:
        flat.left_out["values"] = f"{type(values).__name__} that cannot be read ({error})"
    return flat


def as_amount(value: object, name: str, *, unit: str) -> float:
    """A Python float that is finite and not negative.

    Raises:
        InvalidMetric: it is not.
    """
    amount = as_float(value, name)
    if not 0 <= amount < math.inf:
        raise InvalidMetric(f"{name} must be a finite number of at least 0, got {amount}.", hint=f"Pass {unit}.")
    return amount


def is_on_device(value: object) -> bool:
    """Whether reading the number would make the host wait for a CUDA device."""
    return type(value) is not float and getattr(value, "is_cuda", False) is True


def is_device_scalar(value: object) -> bool:
    """Whether it is one number that `start_copy` can fetch."""
    return is_on_device(value) and _num_elements(value) == 1


def start_copy(tensor: Any) -> PendingScalar:
    """Queue the copy of a 0-d CUDA tensor to pinned host memory; returns at once."""
    return _DeviceCopy(tensor)


class _DeviceCopy:
    def __init__(self, tensor: Any) -> None:
        # PyTorch lets the host side of a non-blocking copy be pinned memory, so nothing waits here.
        self._host = tensor.detach().to("cpu", non_blocking=True)
        # The caller's own framework: this module imports none.
        torch = sys.modules[type(tensor).__module__.partition(".")[0]]
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def is_ready(self) -> bool:
        return bool(self._arrived.query())

    def value(self) -> float:
        self._arrived.synchronize()
        return float(self._host.item())


def _float_of(number: Any) -> float:
    if isinstance(number, (str, bytes, bytearray)):
        # `float` would read a number in it.
        raise TypeError(f"{type(number).__name__} is text")
    return float(number)


def _collect(flat: FlatNumbers, prefix: str, fields: Mapping[Any, object], inside: tuple[int, ...]) -> None:
    for key, (own_name, value) in zip(fields, distinct_names(fields), strict=True):
        name = prefix + own_name
        if own_name != key and not isinstance(key, int):
            flat.renamed[name] = ascii(key)
        try:
            children = _children(value)
        except Exception as error:
            flat.left_out[name] = f"{type(value).__name__} that cannot be read ({error})"
            continue
        if children is None:
            _collect_one(flat, name, value)
        elif id(value) in inside or len(inside) >= _DEEPEST:
            flat.left_out[name] = f"{type(value).__name__} that is nested too deeply"
        else:
            _collect(flat, f"{name}/", children, (*inside, id(value)))


def _collect_one(flat: FlatNumbers, name: str, value: object) -> None:
    try:
        number = value if is_device_scalar(value) else as_float(value, name)
    except InvalidMetric:
        flat.left_out[name] = _describe(value)
        return
    free = name
    while free in flat.numbers:
        free += "'"
    if free != name:
        flat.renamed[free] = ascii(name)
    flat.numbers[free] = number


def _children(value: object) -> Mapping[Any, object] | None:
    """The elements of something nested, by name or index; None for a single value, and for what is too large."""
    if value is None or isinstance(value, (float, int, str, bytes, bytearray)):
        return None
    is_array = hasattr(value, "shape")
    if not is_array and not (isinstance(value, (list, tuple)) and not hasattr(value, "_fields")):
        return named_fields(value)
    elements: Any = value
    if (is_array and _num_elements(value) == 1) or not 0 < len(elements) <= _MOST_ELEMENTS:
        return None
    return {place: elements[place] for place in range(len(elements))}


def _num_elements(value: object) -> int:
    return math.prod(getattr(value, "shape", ()))


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} shape {tuple(shape)}"
    return f"{type(value).__name__} {ascii(value) if isinstance(value, str) else as_text(_repr(value))}"[:80]


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return ""
