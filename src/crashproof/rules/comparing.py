"""What tells several runs apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = ["Difference", "common_steps", "config_differences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key of the config that does not have the same value in all runs."""

    key: str
    """Dotted: `train.batch_size`."""
    values: tuple[str | None, ...]
    """As JSON, run by run; None where a run does not have it."""


def config_differences(configs: Sequence[dict[str, Any]]) -> list[Difference]:
    """All keys whose values differ, sorted; also those that cannot change the result."""
    leaves = [dict(_leaves(config)) for config in configs]
    keys = sorted({key for each in leaves for key in each})
    rows = [(key, tuple(each.get(key) for each in leaves)) for key in keys]
    return [Difference(key=key, values=values) for key, values in rows if len(set(values)) > 1]


def common_steps(last_steps: Sequence[int], count: int) -> list[int]:
    """About so many steps, evenly over what all runs have reached; the last of them is the end of the shortest."""
    shortest = min(last_steps, default=0)
    return sorted({shortest * number // count for number in range(1, count + 1)} - {0})


def _leaves(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(config, dict) and (config or not name):
        for key, value in config.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, msgspec.json.encode(config, order="sorted").decode()
