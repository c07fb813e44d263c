"""The identity of a run: its config."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["canonical_config", "changed_keys", "config_hash", "config_leaves", "without_secrets"]

_CANNOT_CHANGE_THE_RESULT = frozenset({"progress", "logging", "log", "output_dir", "run_name", "resume"})
"""Top-level sections about where to write, how to log, and when to save."""

_LENGTHS = frozenset({"steps", "total_steps", "max_steps", "num_steps", "train_steps"})
"""The length of the training: a run that is extended or shortened stays the same run."""

_SECRETS = (
    "access_key",
    "access_key_id",
    "access_token",
    "api_key",
    "api_keys",
    "apikey",
    "apikeys",
    "auth_token",
    "authorization",
    "cookie",
    "credentials",
    "hf_auth",
    "hf_token",
    "passwd",
    "password",
    "private_key",
    "secret",
    "secrets",
    "webhook",
    "webhooks",
    "webhook_url",
)
_SECRET_ALONE = frozenset({"auth", "token"})
"""Secrets only under exactly this name; `pad_token` is not one."""
_HIDDEN = "(secret)"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ADDRESS_PASSWORDS = re.compile(r"(?<=://)[^/\s@]+:[^/\s@]+(?=@)")
# Only from the beginning of a word: tried at each letter, a long word would take quadratic time.
_ASSIGNED = re.compile(
    r"""(?ix) (?<! [\w-] )
        ( [\w-]* (?: api[-_]?key | access[-_]?key | password | passwd | secret | token | authorization ) [\w-]*
        ["']? \s* [:=] \s* ["']? (?: (?:basic|bearer) \s+ )? ) [^\s"'&,;]{4,}"""
)
_KEY_SHAPES = re.compile(
    r"\b(?:sk|pk|hf|gsk|xai|ghp|key)[-_][A-Za-z0-9_\-]{8,}|\bA[KS]IA[A-Z0-9]{12,}|\bAIza[A-Za-z0-9_\-]{20,}"
    rf"|(?<=Bearer )\S+|(?<=Basic )\S+|{_ADDRESS_PASSWORDS.pattern}"
)
"""API keys as providers spell them, bearer tokens, and passwords in addresses."""


def canonical_config(config: Mapping[str, object]) -> dict[str, Any]:
    """The config as plain JSON values, as it will be read back; secrets are hidden.

    Paths, enums and other objects become text; tuples and sets become lists; NaN and infinities become text.
    """
    return {
        _escape_surrogates(str(key)): _HIDDEN if _is_secret(str(key), value) else _canonical(value)
        for key, value in config.items()
    }


def without_secrets(text: str) -> str:
    """Text with whatever looks like an API key hidden, for errors that are journalled."""
    return _escape_surrogates(_ASSIGNED.sub(rf"\1{_HIDDEN}", _KEY_SHAPES.sub(_HIDDEN, text)))


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a canonical config: keys sorted, no spaces, shortest floats."""
    return hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()


def changed_keys(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The changes that make two canonical configs different runs: `train.batch_size: 32 → 64`, sorted by key."""
    old, new = dict(config_leaves(before)), dict(config_leaves(after))
    return [
        f"{name}: {_show(old, name)} → {_show(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if _matters(name) and old.get(name, _ABSENT) != new.get(name, _ABSENT)
    ]


def config_leaves(config: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Each value of a config that is not a section, with its dotted key: `train.batch_size`."""
    if isinstance(config, dict) and (config or not name):
        for key, value in config.items():
            yield from config_leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, config


_ABSENT = object()


def _canonical(value: object) -> object:
    if isinstance(value, Mapping):
        return canonical_config(value)
    if isinstance(value, (set, frozenset)):
        return sorted((_canonical(each) for each in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_canonical(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        # Names of models look like keys, so only addresses are searched; keys are recognized by what is before them.
        return _escape_surrogates(_ASSIGNED.sub(rf"\1{_HIDDEN}", _ADDRESS_PASSWORDS.sub(_HIDDEN, value)))
    if value is None or isinstance(value, (bool, int)):
        return value
    if hasattr(value, "item"):
        # A NumPy scalar or a 0-d tensor.
        return _canonical(value.item())
    # The memory address of an object differs in every process.
    return _escape_surrogates(_ADDRESS.sub("", str(value)))


def _is_secret(key: str, value: object) -> bool:
    """Whether it is a secret by its name; a number is a setting (`max_token`), and an empty value hides nothing."""
    if not isinstance(value, (str, bytes, Mapping, Sequence)) or not value:
        return False
    name = _CAMEL_HUMP.sub("_", key).lower().replace("-", "_")
    return name in _SECRET_ALONE or any(name == word or name.endswith(f"_{word}") for word in _SECRETS)


def _escape_surrogates(text: str) -> str:
    """Escape lone surrogates, such as in file names of another encoding: JSON cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _matters(name: str) -> bool:
    keys = name.split(".")
    if keys[0] in _CANNOT_CHANGE_THE_RESULT:
        return False
    is_a_length = keys[-1] in _LENGTHS and (len(keys) == 1 or keys[:-1] in (["train"], ["training"], ["trainer"]))
    return not is_a_length


def _show(leaves: dict[str, object], name: str) -> str:
    return msgspec.json.encode(leaves[name]).decode() if name in leaves else "(absent)"
