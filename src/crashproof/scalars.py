"""Convert what training loops pass to numbers.

A loss may be a float, a NumPy scalar or a 0-d tensor of any framework. The caller's thread never waits for one on a
CUDA device: its copy to the host is queued behind the kernels that compute it, and the number is read once the copy
has arrived.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Any, Protocol

from crashproof.errors import InvalidMetric

__all__ = ["PendingScalar", "as_amount", "as_float", "as_int", "is_on_device", "start_copy"]

_LARGEST_INT = 2**63 - 1
"""Other programs that read the journals use signed 64-bit integers."""


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
        if isinstance(value, (int, float)):
            return float(value)
        return float(value.item())
    except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError) as error:
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
    if not 0 <= number <= _LARGEST_INT:
        raise InvalidMetric(
            f"{name} must be a whole number of at least 0, got {_describe(value)}.", hint="Pass an int."
        )
    return number


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


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    text = repr(value) if shape is None else f"shape {tuple(shape)}"
    return f"{type(value).__name__} {text[:60]}"
