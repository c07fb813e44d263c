"""Strict YAML loaders."""

from __future__ import annotations

import yaml

__all__ = ["StrictLoader", "TextLoader"]


class _UniqueKeys(yaml.constructor.BaseConstructor):
    """Makes duplicate keys an error, and reports invalid dates and numbers as YAML errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
        mapping: dict[object, object] = super().construct_mapping(node, deep)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            value: object = super().construct_object(node, deep)
        except ValueError as error:
            # Such as month 13; callers expect YAML's own errors.
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
        return value


class StrictLoader(_UniqueKeys, yaml.SafeLoader):
    """Safe YAML in which duplicate keys are errors."""


class TextLoader(_UniqueKeys, yaml.BaseLoader):
    """The same with every scalar as text, so that `0.1` never becomes a binary float."""
