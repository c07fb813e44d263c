"""Updates that wait for numbers from a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec import Struct

from crashproof.errors import InvalidMetric
from crashproof.records.metrics import Numbers, Update
from crashproof.scalars import PendingScalar, as_float, is_on_device, start_copy

__all__ = ["Moment", "PendingUpdates", "numbers_on_host"]


class Moment(Struct, frozen=True, gc=False):
    """When an update was reported."""

    timestamp: float
    """Seconds since 1970."""
    steady_seconds: float
    """By the steady clock, which is never set back."""


class PendingUpdates:
    """Updates in step order, each written once its numbers have arrived."""

    def __init__(self, write: Callable[[Moment, Update, Numbers], None]) -> None:
        self._write = write
        self._pending: deque[tuple[Moment, Update, _Copies]] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, moment: Moment, update: Update) -> None:
        """Start copying the numbers to the host; returns at once.

        Raises:
            InvalidMetric: a value is not a number; nothing was added.
        """
        copies = _Copies(
            loss=_start_copy(update.loss, "loss"),
            components={name: _start_copy(value, name) for name, value in update.loss_components.items()},
            learning_rate=_start_copy(update.learning_rate, "learning_rate"),
        )
        self._pending.append((moment, update, copies))

    def write_ready(self) -> None:
        """Write the oldest ones whose numbers have arrived."""
        while self._pending and self._pending[0][2].are_ready():
            self._write_first()

    def write_all(self) -> None:
        """Wait for all numbers, and write."""
        while self._pending:
            self._write_first()

    def _write_first(self) -> None:
        moment, update, copies = self._pending.popleft()
        self._write(moment, update, copies.numbers())


@dataclass(frozen=True, slots=True)
class _Copies:
    loss: float | PendingScalar
    components: dict[str, float | PendingScalar]
    learning_rate: float | PendingScalar

    def are_ready(self) -> bool:
        numbers = (self.loss, self.learning_rate, *self.components.values())
        return all(isinstance(number, float) or number.is_ready() for number in numbers)

    def numbers(self) -> Numbers:
        return Numbers(
            loss=_wait_for(self.loss),
            components={name: _wait_for(number) for name, number in self.components.items()},
            learning_rate=_wait_for(self.learning_rate),
        )


def numbers_on_host(update: Update) -> Numbers | None:
    """The numbers as floats, or None if reading one would make the host wait for a device.

    Raises:
        InvalidMetric: a value is not a number, or `loss_components` is not a mapping of names to numbers.
    """
    loss, learning_rate, components = update.loss, update.learning_rate, update.loss_components
    if not isinstance(components, Mapping):
        raise InvalidMetric(
            f"loss_components must be a mapping, got {type(components).__name__}.",
            hint="Pass {} if there are none.",
        )
    if type(loss) is float and type(learning_rate) is float:
        copied = dict(components)
        for value in copied.values():
            if type(value) is not float:
                break
        else:
            return Numbers(loss, copied, learning_rate)  # type: ignore[arg-type]  # All are floats, as just checked.
    if is_on_device(loss) or is_on_device(learning_rate) or any(map(is_on_device, components.values())):
        return None
    return Numbers(
        as_float(loss, "loss"),
        {name: as_float(value, name) for name, value in components.items()},
        as_float(learning_rate, "learning_rate"),
    )


def _start_copy(value: object, name: str) -> float | PendingScalar:
    return start_copy(value) if is_on_device(value) else as_float(value, name)


def _wait_for(number: float | PendingScalar) -> float:
    return number if isinstance(number, float) else number.value()
