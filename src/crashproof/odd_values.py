"""Accept what training loops pass by accident.

A value that is not a number costs its own record and nothing else: training continues, and the log says once, by
name, what was left out and what to pass instead.
"""

from __future__ import annotations

import logging

from crashproof.errors import InvalidMetric
from crashproof.notices import Notices
from crashproof.scalars import as_amount, as_float, as_int, flat_numbers, is_device_scalar

__all__ = ["OddValues"]

log = logging.getLogger("crashproof")

_MOST_SHOWN = 10


class OddValues:
    """Converts values for one run; what cannot be converted is left out, counted, and named once."""

    def __init__(self) -> None:
        self._notices = Notices()

    def numbers(self, values: object, what: str) -> dict[str, object]:
        """The numbers in `values` by name, nested names joined with `/`: floats, or scalars still on a device."""
        flat = flat_numbers(values)
        left_out = [
            f"{name} ({found})" for name, found in flat.left_out.items() if self._notices.is_new((what, name))
        ]
        if left_out:
            log.warning(
                "Recording %s without what is not a number: %s. Pass floats, 0-d tensors, or mappings of them.",
                what,
                _listed(left_out),
            )
        renamed = [
            f"{given} to {name!r}"
            for name, given in flat.renamed.items()
            if self._notices.is_new((what, given, name))
        ]
        if renamed:
            log.warning("Renaming in %s: %s. Pass names that are distinct texts.", what, _listed(renamed))
        return flat.numbers

    def number(self, value: object, name: str, *, recorded: str) -> object | None:
        """A float, or a scalar still on a device; None if it is neither. `recorded` says what stands for it."""
        try:
            return value if is_device_scalar(value) else as_float(value, name)
        except InvalidMetric as error:
            self._notices.warn(name, "%s %s", error, recorded)
            return None

    def count(self, value: object, name: str, *, otherwise: int) -> int:
        """A count; a fraction is rounded down, and `otherwise` stands for what is no count."""
        try:
            return as_int(value, name)
        except InvalidMetric as error:
            count = _rounded_down(value, otherwise)
            self._notices.warn(name, "%s Recording %d.", error, count)
            return count

    def amount(self, value: object, name: str, *, unit: str) -> float | None:
        """A finite amount of at least 0; None if it is none."""
        try:
            return None if value is None else as_amount(value, name, unit=unit)
        except InvalidMetric as error:
            self._notices.warn(name, "%s It is left out.", error)
            return None


def _rounded_down(value: object, otherwise: int) -> int:
    try:
        amount = as_float(value, "count")
    except InvalidMetric:
        return otherwise
    return int(amount) if 0 <= amount < 2**63 else otherwise


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
