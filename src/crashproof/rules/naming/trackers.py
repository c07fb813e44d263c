"""What trackers allow in a name.

A name that a tracker allows is kept. Any other is mapped to one that it allows and that ends with a digest of the
original name, so no two names ever become one, whichever comes first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crashproof.patterns import LazyPattern

__all__ = [
    "MLFLOW",
    "MLFLOW_FOLDING_CASE",
    "TABLE",
    "TENSORBOARD",
    "WANDB",
    "NameRule",
    "digest_suffix",
    "parameter_names",
    "tracker_name",
]

_MAPPED = LazyPattern(r"--[0-9a-f]{12}\Z")
"""The end of a mapped name; a name that ends like this by itself is mapped too."""
_DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """What one tracker allows."""

    tracker: str
    forbidden: re.Pattern[str] | None = None
    """A character that no name may have."""
    reserved: re.Pattern[str] | None = None
    """The beginning of names that the tracker keeps for itself."""
    longest: int | None = None
    """Characters of the longest name."""
    is_path: bool = False
    """Whether a name must be a relative path in its shortest form: no `a//b`, `/a`, `a/`, `.` or `..`."""
    folds_case: bool = False
    """Whether names that differ only in case are the same."""
    separator: str = "/"
    """What the frameworks' own callbacks put between `eval` and a name."""

    def allows(self, name: str) -> bool:
        """Whether the tracker takes a name as it is."""
        return (
            bool(name)
            and (self.forbidden is None or self.forbidden.search(name) is None)
            and (self.reserved is None or self.reserved.match(name) is None)
            and (self.longest is None or len(name) <= self.longest)
            and not (self.is_path and name != _as_path(name))
            and not (self.folds_case and name != name.lower())
        )


TENSORBOARD = NameRule(tracker="TensorBoard")
"""A tag is any text; `/` groups the charts."""
WANDB = NameRule(tracker="W&B", forbidden=re.compile(r"[\x00-\x1f\x7f]"), reserved=re.compile("_"))
"""`_step`, `_runtime`, `_timestamp` and the like are its own; `/` groups the charts."""
MLFLOW = NameRule(tracker="MLflow", forbidden=re.compile(r"[^/\w.\- :]"), longest=250, is_path=True, separator="_")
"""Letters and digits of any script, `_-.:/` and spaces, for metrics and parameters alike."""
MLFLOW_FOLDING_CASE = NameRule(
    tracker="MLflow", forbidden=MLFLOW.forbidden, longest=250, is_path=True, folds_case=True, separator="_"
)
"""The same in a database, or on a file system, that does not tell upper from lower case."""
TABLE = NameRule(tracker="tables", separator="_")
"""A column is named by any text."""


def tracker_name(name: str, rule: NameRule) -> str:
    """The name of a value in a tracker; no other name has the same."""
    if rule.allows(name) and _MAPPED.search(name) is None:
        return name
    readable = name if rule.forbidden is None else rule.forbidden.sub("_", name)
    readable = readable.lower() if rule.folds_case else readable
    readable = _as_path(readable) if rule.is_path else readable
    if rule.reserved is not None and rule.reserved.match(readable):
        readable = f"x{readable}"
    suffix = f"-{digest_suffix(name)}"
    return readable[: None if rule.longest is None else rule.longest - len(suffix)] + suffix


def parameter_names(config: Mapping[str, object]) -> dict[str, object]:
    """Each value of a config that is not a section, by its dotted key; where two have the same, one has a digest."""
    named: dict[str, object] = {}
    # The deepest first: the value of `{"a": {"b": 1}}` is what everybody calls `a.b`.
    for path, value in sorted(_leaves(config, ()), key=lambda each: (-len(each[0]), each[0])):
        name = ".".join(path)
        named[name + digest_suffix("\0".join(path)) if name in named else name] = value
    return named


def digest_suffix(name: str) -> str:
    """What is put behind a name that another one would have as well."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"-{digest[:_DIGEST_CHARACTERS]}"


def _leaves(config: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(config, Mapping) and (config or not path):
        for key, value in config.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, config


def _as_path(name: str) -> str:
    """The name where it is a relative path in its shortest form that begins with no two dots, else a similar one."""
    parts = ["_" * max(1, len(part)) if part in ("", ".", "..") else part for part in name.split("/")]
    return f"_{name[1:]}" if parts[0].startswith("..") else "/".join(parts)
