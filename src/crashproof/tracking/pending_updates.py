"""Updates whose numbers are still on a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from crashproof.errors import InvalidMetric
from crashproof.scalars import PendingScalar, as_float, is_on_device, start_copy

__all__ = ["Measured", "Update", "WaitingUpdates", "measured_at_once"]


class Update(Struct, frozen=True, gc=False):
    """What is known the moment a step is reported."""

    timestamp: float
    steady_seconds: float
    step: int
    samples: int
    tokens: int
    samples_per_sec: float | None
    tokens_per_sec: float | None


class Measured(Struct, frozen=True, gc=False):
    """The numbers of an update, all on the host."""

    loss: float
    components: dict[str, float]
    learning_rate: float


class WaitingUpdates:
    """Updates in step order, each written once its numbers have arrived."""

    def __init__(self, write: Callable[[Update, Measured], None]) -> None:
        self._write = write
        self._waiting: deque[tuple[Update, _Copies]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, update: Update, loss: Any, components: Mapping[str, Any], learning_rate: Any) -> None:
        """Start copying the numbers to the host; returns at once."""
        copies = _Copies(
            loss=_copied(loss, "loss"),
            components={name: _copied(value, name) for name, value in components.items()},
            learning_rate=_copied(learning_rate, "learning_rate"),
        )
        self._waiting.append((update, copies))

    def write_ready(self) -> None:
        """Write those at the front whose numbers are here."""
        while self._waiting and self._waiting[0][1].are_ready():
            self._write_first()

    def write_all(self) -> None:
        """Wait for all numbers, and write."""
        while self._waiting:
            self._write_first()

    def _write_first(self) -> None:
        update, copies = self._waiting.popleft()
        self._write(update, copies.measured())


@dataclass(frozen=True, slots=True)
class _Copies:
    loss: float | PendingScalar
    components: dict[str, float | PendingScalar]
    learning_rate: float | PendingScalar

    def are_ready(self) -> bool:
        numbers = (self.loss, self.learning_rate, *self.components.values())
        return all(isinstance(number, float) or number.is_ready() for number in numbers)

    def measured(self) -> Measured:
        return Measured(
            loss=_arrived(self.loss),
            components={name: _arrived(number) for name, number in self.components.items()},
            learning_rate=_arrived(self.learning_rate),
        )


def measured_at_once(loss: Any, components: Any, learning_rate: Any) -> Measured | None:
    """The numbers as floats, or None where reading one would make the host wait for a device.

    Raises:
        InvalidMetric: one is no number, or `components` no mapping of names to numbers.
    """
    if not isinstance(components, Mapping):
        raise InvalidMetric(
            f"loss_components must be a mapping, got {type(components).__name__}.",
            hint="Pass {} where there are none.",
        )
    if type(loss) is float and type(learning_rate) is float:
        copied = dict(components)
        for value in copied.values():
            if type(value) is not float:
                break
        else:
            return Measured(loss, copied, learning_rate)
    if _is_any_on_device(loss, components, learning_rate):
        return None
    return Measured(
        as_float(loss, "loss"),
        {name: as_float(value, name) for name, value in components.items()},
        as_float(learning_rate, "learning_rate"),
    )


def _is_any_on_device(loss: Any, components: Mapping[str, Any], learning_rate: Any) -> bool:
    if is_on_device(loss) or is_on_device(learning_rate):
        return True
    return any(is_on_device(value) for value in components.values())


def _copied(value: Any, name: str) -> float | PendingScalar:
    return start_copy(value) if is_on_device(value) else as_float(value, name)


def _arrived(number: float | PendingScalar) -> float:
    return number if isinstance(number, float) else number.value()
