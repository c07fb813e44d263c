"""Updates that wait for numbers from a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
from msgspec import Struct

from crashproof.odd_values import OddValues
from crashproof.records.metrics import Numbers, Update
from crashproof.scalars import PendingScalar, as_float, is_on_device, start_copy

__all__ = ["Moment", "PendingUpdates", "as_reported", "floats_of", "numbers_on_host"]


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
        self.queue: deque[tuple[Moment, Update, _Copies]] = deque()
        """In step order."""

    def __len__(self) -> int:
        return len(self.queue)

    def add(self, moment: Moment, update: Update) -> None:
        """Start copying the numbers of a converted update to the host; returns at once."""
        copies = _Copies(
            loss=None if update.loss is None else _start_copy(update.loss, "loss"),
            components={name: _start_copy(value, name) for name, value in update.loss_components.items()},
            learning_rate=_start_copy(update.learning_rate, "learning_rate"),
        )
        self.queue.append((moment, update, copies))

    def write_ready(self) -> None:
        """Write the oldest ones whose numbers have arrived."""
        while self.queue and self.queue[0][2].are_ready():
            self._write_first()

    def write_all(self) -> None:
        """Wait for all numbers, and write."""
        while self.queue:
            self._write_first()

    def _write_first(self) -> None:
        moment, update, copies = self.queue.popleft()
        self._write(moment, update, copies.numbers())


class _Copies(Struct, frozen=True):
    loss: float | PendingScalar | None
    components: dict[str, float | PendingScalar]
    learning_rate: float | PendingScalar

    def are_ready(self) -> bool:
        numbers = (self.loss, self.learning_rate, *self.components.values())
        return all(number is None or isinstance(number, float) or number.is_ready() for number in numbers)

    def numbers(self) -> Numbers:
        return Numbers(
            loss=None if self.loss is None else _wait_for(self.loss),
            components={name: _wait_for(number) for name, number in self.components.items()},
            learning_rate=_wait_for(self.learning_rate),
        )


def floats_of(update: Update) -> Numbers | None:
    """The numbers of an update that consists of floats and plain names, as nearly all do; else None."""
    loss, learning_rate, components = update.loss, update.learning_rate, update.loss_components
    if type(loss) is not float or type(learning_rate) is not float or type(components) is not dict:
        return None
    copied = components.copy()
    for name, value in copied.items():
        if type(value) is not float or type(name) is not str or not name.isascii():
            return None
    return Numbers(loss, copied, learning_rate)


def as_reported(update: Update, odd_values: OddValues) -> Update:
    """An update of which every value is a number: a float, or a scalar still on a device; or None as its loss."""
    loss = odd_values.number(update.loss, "loss", recorded="Recording steps of this kind without a loss.")
    learning_rate = odd_values.number(update.learning_rate, "learning_rate", recorded="Recording 0.")
    return msgspec.structs.replace(
        update,
        loss=loss,
        loss_components=odd_values.numbers(update.loss_components, "loss_components"),
        learning_rate=0.0 if learning_rate is None else learning_rate,
    )


def numbers_on_host(update: Update) -> Numbers | None:
    """The numbers of a converted update as floats, or None if reading one would make the host wait for a device."""
    loss, learning_rate, components = update.loss, update.learning_rate, update.loss_components
    if is_on_device(loss) or is_on_device(learning_rate) or any(map(is_on_device, components.values())):
        return None
    return Numbers(
        None if loss is None else as_float(loss, "loss"),
        {name: as_float(value, name) for name, value in components.items()},
        as_float(learning_rate, "learning_rate"),
    )


def _start_copy(value: object, name: str) -> float | PendingScalar:
    return start_copy(value) if is_on_device(value) else as_float(value, name)


def _wait_for(number: float | PendingScalar) -> float:
    return number if isinstance(number, float) else number.value()
