"""What differs between two configs, and whether it counts."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from crashproof.errors import ConfigError
from crashproof.patterns import LazyPattern
from crashproof.rules.identity.batch import GlobalBatch, is_factor
from crashproof.rules.identity.canonical import canonical_config
from crashproof.rules.identity.key_names import KeyPath, reason_of_key
from crashproof.rules.identity.places import is_same_thing
from crashproof.rules.identity.rows import Reason
from crashproof.rules.secrets.placeholder import without_digests, without_digests_of_credentials

__all__ = ["NO_DIFFERENCE", "Comparison", "IdentityRules", "changed_keys", "compare_configs", "is_another_run"]

_HIDDEN_CHANGE = "changed (hidden)"
_MAX_NAMED = 5
_NAMES = frozenset({"group", "id", "label", "name", "suffix", "tag", "title"})
_TIME = LazyPattern(
    r"(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d(?:[-_. T]?[0-2]\d[-_.:h]?[0-5]\d(?:[-_.:m]?[0-5]\d)?s?)?(?:\.\d+)?Z?"
    r"|(?<!\d)1\d{9}(?:\d{3}|\.\d+)?(?!\d)"
)
_SCHEDULE = LazyPattern(r"sched|cosine|decay_lr|lr_decay|anneal|warmup_ratio|one_?cycle", re.IGNORECASE)


class IdentityRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller knows of its config's keys."""

    ignored: tuple[str, ...] = ()
    """Patterns of dotted keys, or of sections, that do not count; `*` stands for anything, also for several parts."""
    defaults: Mapping[str, object] = msgspec.field(default_factory=dict)
    """What the absence of a dotted key means."""

    @classmethod
    def of(cls, ignored: object, defaults: Mapping[str, object] | None = None) -> IdentityRules:
        """Check the argument `ignore_config_keys`.

        Raises:
            ConfigError: it is no list of texts.
        """
        patterns = (ignored,) if isinstance(ignored, str) else ignored
        if not isinstance(patterns, Iterable) or isinstance(patterns, (bytes, Mapping)):
            raise _not_patterns(ignored)
        listed = tuple(patterns)
        if not all(isinstance(each, str) and each for each in listed):
            raise _not_patterns(ignored)
        canonical = canonical_config(defaults or {})
        return cls(ignored=listed, defaults={".".join(parts): value for parts, value in _leaves(canonical)})

    def ignores(self, parts: Sequence[str]) -> bool:
        """Whether a key, or a section that it lies in, is named by a pattern."""
        names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored for name in names)


_NO_RULES = IdentityRules()


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The differences between the config of a session and the one of the next start."""

    changed: tuple[str, ...]
    """What counts, and what is said of credentials, sorted by key: `train.batch_size: 32 → 64`."""
    counting_keys: tuple[str, ...]
    """The keys that make another run; a new value of a key or a password does not."""
    not_counting: tuple[str, ...]
    """All other changes, each with its reason: `train.epochs: 3 → 5 (how long to train)`."""
    notes: tuple[str, ...]
    """Sentences about what a change that does not count still changes."""

    @property
    def is_another_run(self) -> bool:
        """Whether a key that counts has changed."""
        return bool(self.counting_keys)

    @property
    def how_to_keep(self) -> str:
        """The arguments with which the run goes on in spite of the changes."""
        named = [msgspec.json.encode(each).decode() for each in self.counting_keys[:_MAX_NAMED]]
        more = [] if len(self.counting_keys) <= _MAX_NAMED else ["…"]
        return f'ignore_config_keys=[{", ".join([*named, *more])}] or on_config_change="continue"'


NO_DIFFERENCE = Comparison(changed=(), counting_keys=(), not_counting=(), notes=())


class _Change(msgspec.Struct, frozen=True, kw_only=True):
    """One key whose values differ."""

    parts: tuple[str, ...]
    before: object
    after: object

    @property
    def name(self) -> str:
        return ".".join(self.parts)

    @property
    def is_credential(self) -> bool:
        return _encoded(self.before) == _encoded(self.after)

    def __str__(self) -> str:
        shown = _show(self.before), _show(self.after)
        return f"{self.name}: {_HIDDEN_CHANGE if shown[0] == shown[1] else f'{shown[0]} → {shown[1]}'}"


def compare_configs(
    before: Mapping[str, Any], after: Mapping[str, Any], rules: IdentityRules = _NO_RULES
) -> Comparison:
    """Compare two canonical configs."""
    # An earlier version may have hidden less.
    old, new = dict(_leaves(canonical_config(before))), dict(_leaves(canonical_config(after)))
    if old == new:
        return NO_DIFFERENCE
    verdicts = list(_verdicts(old, new, rules))
    return Comparison(
        changed=tuple(str(change) for change, reason in verdicts if reason is None),
        counting_keys=tuple(each.name for each, reason in verdicts if reason is None and not each.is_credential),
        not_counting=tuple(f"{change} ({reason})" for change, reason in verdicts if reason is not None),
        notes=tuple(_notes(old, new, verdicts)),
    )


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], rules: IdentityRules = _NO_RULES) -> list[str]:
    """The changes that count, and those of credentials: `train.batch_size: 32 → 64`, sorted by key.

    A new value of a secret is `train.api_key: changed (hidden)`, if it was long enough to be noticed.
    """
    return list(compare_configs(before, after, rules).changed)


def is_another_run(before: Mapping[str, Any], after: Mapping[str, Any], rules: IdentityRules = _NO_RULES) -> bool:
    """Whether two canonical configs differ in a key that counts; a renewed credential makes no new run."""
    return compare_configs(before, after, rules).is_another_run


class _Absent:
    """The value of a key that a config does not have."""


_ABSENT = _Absent()
_Leaves = dict[tuple[str, ...], object]


def _leaves(config: object, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Each value that is no section, with the parts of its key; a list of sections is one by their numbers."""
    if isinstance(config, dict) and (config or not parts):
        for key, value in config.items():
            yield from _leaves(value, (*parts, key))
    elif isinstance(config, list) and any(isinstance(each, dict) for each in config):
        for number, value in enumerate(config):
            yield from _leaves(value, (*parts, str(number)))
    else:
        yield parts, config


def _verdicts(old: _Leaves, new: _Leaves, rules: IdentityRules) -> Iterator[tuple[_Change, Reason | None]]:
    """Each change, and why it does not count, or None."""
    keys = sorted(old.keys() | new.keys(), key=".".join)
    all_keys = frozenset(KeyPath.of(parts).last for parts in keys)
    is_same_batch = GlobalBatch.of(old).is_same(GlobalBatch.of(new))
    for parts in keys:
        change = _Change(parts=parts, before=old.get(parts, _ABSENT), after=new.get(parts, _ABSENT))
        if change.before != change.after:
            yield change, _reason(change, all_keys, rules, is_same_batch=is_same_batch)


def _reason(change: _Change, all_keys: frozenset[str], rules: IdentityRules, *, is_same_batch: bool) -> Reason | None:
    key = KeyPath.of(change.parts)
    if rules.ignores(change.parts):
        return Reason.REQUESTED
    if reason := reason_of_key(key, (change.before, change.after), all_keys):
        return reason
    if is_same_batch and is_factor(key):
        return Reason.BATCH
    if _is_default(change, rules):
        return Reason.DEFAULT
    if _has_same_name(change.before, change.after, is_name=key.last in _NAMES):
        return Reason.SAME_NAME
    return None


def _is_default(change: _Change, rules: IdentityRules) -> bool:
    """Whether a key is in one config alone, with the value that its absence means.

    Without a known default, absence means none: null, false, or something empty. A zero is a setting.
    """
    if change.before is not _ABSENT and change.after is not _ABSENT:
        return False
    present = change.after if change.before is _ABSENT else change.before
    if change.name in rules.defaults:
        return bool(rules.defaults[change.name] == present)
    return present is None or present is False or present in ("", [], {})


def _has_same_name(before: object, after: object, *, is_name: bool) -> bool:
    """Whether two values are paths of the same thing, or a name with another time in it."""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = zip(before, after, strict=True)
        return all(one == other or _has_same_name(one, other, is_name=is_name) for one, other in pairs)
    if not isinstance(before, str) or not isinstance(after, str):
        return False
    return is_same_thing(before, after) or (is_name and _TIME.sub("", before) == _TIME.sub("", after))


def _notes(old: _Leaves, new: _Leaves, verdicts: list[tuple[_Change, Reason | None]]) -> Iterator[str]:
    lengths = [str(change) for change, reason in verdicts if reason is Reason.LENGTH]
    if lengths and any(_SCHEDULE.search(f"{'.'.join(parts)} {value}") for parts, value in new.items()):
        yield (
            f"The length has changed ({'; '.join(lengths)}): a learning-rate schedule that is derived from it "
            "changes from here on, so the result differs from that of a run which had this length from its beginning"
        )
    batches = GlobalBatch.of(old), GlobalBatch.of(new)
    factors = [str(change) for change, reason in verdicts if reason is Reason.BATCH]
    if factors:
        yield (
            f"The global batch is the same and is divided in another way ({'; '.join(factors)}): sums are taken in "
            "another order, so the result is equal up to rounding and not bit for bit"
        )
    samples = [each.samples() for each in batches]
    if None not in samples and samples[0] != samples[1] and batches[0].processes != batches[1].processes:
        yield (
            f"The number of processes has changed ({batches[0].processes} → {batches[1].processes}), and with it the "
            f"global batch ({samples[0]} → {samples[1]}), unless the script adjusts it"
        )


def _encoded(value: object) -> str | None:
    """A value as JSON, without what tells one credential from another."""
    return None if value is _ABSENT else without_digests_of_credentials(msgspec.json.encode(value).decode())


def _show(value: object) -> str:
    return "(absent)" if value is _ABSENT else without_digests(msgspec.json.encode(value).decode())


def _not_patterns(ignored: object) -> ConfigError:
    return ConfigError(
        f"ignore_config_keys must be a list of texts, got {ignored!r}.",
        hint='Pass dotted keys or patterns, such as ["wandb_*", "data.*.path"].',
    )
