"""Differences between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from crashproof.rules.identity import config_leaves

__all__ = ["Difference", "common_steps", "config_differences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key of the config whose value is not the same in all runs."""

    key: str
    """Dotted: `train.batch_size`."""
    values: tuple[str | None, ...]
    """As JSON, one per run; None if a run does not have the key."""


def config_differences(configs: Sequence[dict[str, Any]]) -> list[Difference]:
    """All keys whose values differ, sorted, including those that cannot change the result."""
    leaves = [{key: _as_json(value) for key, value in config_leaves(config)} for config in configs]
    keys = sorted({key for each in leaves for key in each})
    rows = [(key, tuple(each.get(key) for each in leaves)) for key in keys]
    return [Difference(key=key, values=values) for key, values in rows if len(set(values)) > 1]


def common_steps(last_steps: Sequence[int], count: int) -> list[int]:
    """About `count` steps, evenly spaced up to the end of the shortest run."""
    shortest = min(last_steps, default=0)
    return sorted({shortest * number // count for number in range(1, count + 1)} - {0})


def _as_json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
