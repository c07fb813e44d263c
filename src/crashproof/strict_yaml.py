"""Strict YAML loaders, which no document can make run for minutes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

__all__ = ["MAX_ALIASED_VALUES", "MAX_DEPTH", "StrictLoader", "TextLoader"]

MAX_DEPTH = 100
"""The most lists and mappings inside each other."""
MAX_ALIASED_VALUES = 100_000
"""The most values that all aliases (`*name`) of a document stand for together."""


class _Bounded(yaml.parser.Parser, yaml.composer.Composer):
    """Stops at a document that is nested too deeply, or whose aliases stand for too much."""

    def __init__(self, stream: object) -> None:
        super().__init__(stream)  # type: ignore[call-arg]  # The next one is a loader's.
        self._depth = 0
        self._num_values = 0
        self._num_aliased = 0
        self._sizes: dict[yaml.Node | None, int] = {}
        """How many values each node is, with all that is in it and all that aliases in it stand for."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._depth >= MAX_DEPTH:
            raise _refusal(event, f"more than {MAX_DEPTH} lists and mappings inside each other")
        before = self._num_values
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self._count_alias(node, event)
        else:
            self._num_values += 1
            self._sizes[node] = self._num_values - before
        return node

    def _count_alias(self, node: yaml.Node | None, event: yaml.AliasEvent) -> None:
        if node not in self._sizes:
            raise _refusal(event, f"the alias *{event.anchor} stands for something that it is in")
        self._num_values += self._sizes[node]
        self._num_aliased += self._sizes[node]
        if self._num_aliased > MAX_ALIASED_VALUES:
            raise _refusal(event, f"its aliases stand for more than {MAX_ALIASED_VALUES:,} values")


def _refusal(event: yaml.Event, problem: str) -> yaml.composer.ComposerError:
    return yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


class _UniqueKeys(yaml.constructor.BaseConstructor):
    """Makes duplicate keys an error, and reports invalid dates and numbers as YAML errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key: Any = self.construct_object(key_node, deep=True)
            # YAML itself says that a list is no key.
            if not isinstance(key, Hashable):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
            seen.add(key)
        mapping: dict[object, object] = super().construct_mapping(node, deep)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            value: object = super().construct_object(node, deep)
        except ValueError as error:
            # Such as month 13; callers expect YAML's own errors.
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
        return value


class StrictLoader(_Bounded, _UniqueKeys, yaml.SafeLoader):
    """Safe YAML in which duplicate keys are errors."""


class TextLoader(_Bounded, _UniqueKeys, yaml.BaseLoader):
    """The same with every scalar as text, so that `0.1` never becomes a binary float."""
