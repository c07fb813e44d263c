"""YAML in which nothing is guessed."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["StrictLoader", "TextLoader"]


class _ReadsEachKeyOnce(yaml.constructor.BaseConstructor):
    """A key that is written twice is an error, and so is a value that only looks like a date or a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is written twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            # A thirteenth month, for one; whoever reads YAML expects YAML's own errors.
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


class StrictLoader(_ReadsEachKeyOnce, yaml.SafeLoader):
    """YAML without code, in which a key that is written twice is an error."""


class TextLoader(_ReadsEachKeyOnce, yaml.BaseLoader):
    """The same with every scalar as the text that was written: `0.1` has not been a binary float."""
