"""Turn Python values into JSON values.

A config may hold whatever a program keeps its settings in. What it becomes is the same in every process, and is read
back as itself; so it holds no memory addresses, and no order that depends on a hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
from collections import UserString
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import ModuleType, SimpleNamespace
from typing import Any

from crashproof.errors import ConfigError
from crashproof.patterns import LazyPattern

__all__ = ["as_text", "distinct_names", "named_fields", "plain_config"]

_ADDRESS = LazyPattern(r" at 0x[0-9a-fA-F]+")
_MOST_ELEMENTS = 1000
"""Of an array; a larger one is kept as its digest."""
_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**64 - 1
"""What other programs that read the journals, and JSON parsers, take as a whole number."""
_MOST_DIGITS_BITS = 10_000
"""Python refuses to write much longer integers in decimal digits."""


def plain_config(config: object) -> dict[str, Any]:
    """A config, a mapping or an object with named fields, as JSON objects, lists, texts, numbers, booleans and nulls.

    Tuples, sets and arrays become lists; paths, enums, dates, decimals and other objects become text, and so do NaN,
    infinities and whole numbers beyond 64 bits; dataclasses, namespaces, and models with named fields become objects.

    Raises:
        ConfigError: it has no named fields, holds itself, or something in it cannot be read.
    """
    if isinstance(config, type) or named_fields(config) is None:
        raise ConfigError(
            f"A config must be a mapping, got {type(config).__name__}.", hint="Pass a dict, such as a YAML mapping."
        )
    plain: dict[str, Any] = _Conversion().convert(config)
    return plain


def named_fields(value: object) -> Mapping[Any, object] | None:
    """The fields of a mapping, dataclass, namespace, named tuple, or an instance of a model; None if it has none."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if isinstance(value, SimpleNamespace) or _is_of("argparse", "Namespace", value):
        return vars(value)
    kind = type(value)
    for names_of in _FIELD_NAMES:
        names = names_of(kind)
        if names is not None:
            return {name: getattr(value, name) for name in names if hasattr(value, name)}
    to_dict = getattr(kind, "to_dict", None)
    fields = to_dict(value) if callable(to_dict) else None
    return fields if isinstance(fields, Mapping) else None


def _is_of(module: str, name: str, value: object) -> bool:
    """Whether a value has a class of a module, which is not imported for this: no value has it before."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _dataclass_names(kind: type) -> Iterable[str] | None:
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else None


_FIELD_NAMES: tuple[Callable[[type], Iterable[str] | None], ...] = (
    _dataclass_names,
    # A named tuple.
    lambda kind: kind._fields if issubclass(kind, tuple) and hasattr(kind, "_fields") else None,
    # pydantic.
    lambda kind: fields if isinstance(fields := getattr(kind, "model_fields", None), Mapping) else None,
    # attrs.
    lambda kind: [each.name for each in kind.__attrs_attrs__] if hasattr(kind, "__attrs_attrs__") else None,
    # msgspec.
    lambda kind: getattr(kind, "__struct_fields__", None),
)
"""The names of the fields of a class, each way in which a class may have some; None: not in this way."""


def distinct_names(fields: Mapping[Any, object]) -> list[tuple[str, object]]:
    """The fields by names that are text and distinct.

    Of keys with the same text, such as `1` and `"1"`, one is marked. Which one does not depend on their order: a key
    that is text keeps its name.
    """
    items = list(fields.items())
    names = [as_text(key) for key, _ in items]
    if len({*names}) < len(names):
        by_rank = sorted(range(len(items)), key=lambda place: _rank(items[place][0], names[place]))
        taken: set[str] = set()
        for place in by_rank:
            while names[place] in taken:
                names[place] += "'"
            taken.add(names[place])
    return [(name, value) for name, (_, value) in zip(names, items, strict=True)]


def as_text(value: object) -> str:
    """What stands for a value that JSON cannot hold: its text, without memory addresses.

    Half of a surrogate pair, which UTF-8 cannot hold, is escaped.
    """
    if isinstance(value, str):
        # The text of a member of an enum is its value, not its name.
        text = str.__str__(value)
    elif isinstance(value, ModuleType):
        text = f"<module {value.__name__}>"
    else:
        text = _ADDRESS.sub("", _str(value))
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _str(value: object) -> str:
    try:
        return str(value)
    except Exception:
        # Its own __str__ fails: its class is all that is known of it.
        return f"<{type(value).__qualname__}>"


class _Conversion:
    """Converts one config, and knows where in it it is."""

    def __init__(self) -> None:
        self._place: list[str] = []
        self._inside: list[int] = []

    def convert(self, value: object) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return as_text(value) if isinstance(value, str) else value
        if isinstance(value, int):
            return _plain_int(int(value))
        if isinstance(value, float):
            return _plain_float(float(value))
        try:
            return self._convert_object(value)
        except ConfigError:
            raise
        except RecursionError:
            raise self._refusal("it is nested too deeply") from None
        except Exception as error:
            raise self._refusal(f"{type(value).__name__} cannot be read ({error})") from error

    def _convert_object(self, value: object) -> Any:
        if isinstance(value, UserString) or _is_of("fractions", "Fraction", value):
            return as_text(value)
        if callable(getattr(value, "tolist", None)) and hasattr(value, "shape"):
            return self._convert_array(value)
        fields = named_fields(value)
        if fields is not None:
            return self._enter(value, lambda: self._convert_fields(fields))
        if isinstance(value, Set):
            items = self._enter(value, lambda: [self.convert(each) for each in value])
            return sorted(items, key=lambda each: (str(each), type(each).__name__))
        if isinstance(value, Sequence) and not isinstance(value, (bytes, range)):
            return self._enter(value, lambda: self._convert_items(value))
        if isinstance(value, range) and len(value) <= _MOST_ELEMENTS:
            return list(value)
        return as_text(value)

    def _convert_fields(self, fields: Mapping[Any, object]) -> dict[str, Any]:
        return {name: self._at(name, value) for name, value in distinct_names(fields)}

    def _convert_items(self, items: Sequence[object]) -> list[Any]:
        return [self._at(str(place), each) for place, each in enumerate(items)]

    def _convert_array(self, array: Any) -> Any:
        """A small array, tensor or scalar of any framework as its numbers; a large one as a digest of them."""
        numbers = array.tolist()
        num_elements = math.prod(array.shape)
        if num_elements <= _MOST_ELEMENTS:
            return self.convert(numbers) if isinstance(numbers, list) else self._convert_scalar(numbers)
        digest = hashlib.sha256(repr(numbers).encode()).hexdigest()
        return f"{type(array).__name__} {getattr(array, 'dtype', '')} {tuple(array.shape)} sha256 {digest}"

    def _convert_scalar(self, scalar: object) -> Any:
        # NumPy gives an object without a Python counterpart back as itself.
        return as_text(scalar) if hasattr(scalar, "tolist") else self.convert(scalar)

    def _at(self, name: str, value: object) -> Any:
        self._place.append(name)
        converted = self.convert(value)
        self._place.pop()
        return converted

    def _enter(self, container: object, convert: Callable[[], Any]) -> Any:
        """Convert what lies inside a container, unless that is the container itself."""
        if id(container) in self._inside:
            raise self._refusal("it holds itself")
        self._inside.append(id(container))
        converted = convert()
        self._inside.pop()
        return converted

    def _refusal(self, reason: str) -> ConfigError:
        place = ".".join(self._place)
        shown = f"{place[:100]}…" if len(place) > 100 else place
        return ConfigError(
            f"The config cannot be kept: {reason}" + (f", at {shown}." if shown else "."),
            hint="Pass plain settings, such as a dict of numbers and texts.",
        )


def _plain_int(value: int) -> int | str:
    if _SMALLEST_INT <= value <= _LARGEST_INT:
        return value
    return str(value) if value.bit_length() < _MOST_DIGITS_BITS else hex(value)


def _plain_float(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _rank(key: object, name: str) -> tuple[bool, str, str]:
    return not (isinstance(key, str) and key == name), name, f"{type(key).__module__}.{type(key).__qualname__}"
