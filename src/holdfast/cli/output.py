"""Answers for machines."""

from __future__ import annotations

import json
from typing import Any

import typer

from holdfast.records import nonfinite_names

__all__ = ["print_json"]


def print_json(answer: dict[str, Any]) -> None:
    """One object for machines; NaN and infinities are null, with their names beside."""
    nonfinite = nonfinite_names(answer)
    content = _without_nonfinite(answer) | ({"nonfinite": nonfinite} if nonfinite else {})
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_nonfinite(child) for child in value]
    return None if isinstance(value, float) and nonfinite_names(value) else value
