"""Which keys of a config may differ between hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from crashproof.rules.identity import canonical_config, config_leaves

__all__ = ["CONTENT_COUNTS", "MAY_DIFFER", "comparable_config"]

CONTENT_COUNTS = ("data.path", "data.eval_path", "student.path", "teacher.path")
"""Places of inputs: hosts may have them elsewhere, and what lies there is compared instead."""

MAY_DIFFER = {
    "progress.alerts": "only the main process sends alerts",
    "teacher.headers": "they hold credentials, which each host may have from elsewhere",
    "teacher.query": "it holds credentials, which each host may have from elsewhere",
    "teacher.prices": "it decides what an answer costs, not what it says",
}
"""Keys, or sections, that decide nothing that the processes share; each with its reason."""


def comparable_config(config: Mapping[str, Any]) -> dict[str, str]:
    """The keys of a config in which all processes must agree, with their values as JSON; secrets are hidden."""
    leaves = dict(config_leaves(canonical_config(config)))
    return {name: _comparable(name, value) for name, value in leaves.items() if not _may_differ(name)}


def _may_differ(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in MAY_DIFFER)


def _comparable(name: str, value: object) -> str:
    if name in CONTENT_COUNTS and value is not None:
        return "a path"
    return msgspec.json.encode(value, order="sorted").decode()
