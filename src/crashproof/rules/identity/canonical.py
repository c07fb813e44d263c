"""A config as plain values, without secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from itertools import pairwise
from typing import Any

import msgspec

from crashproof.plain_values import plain_config
from crashproof.rules.secrets.names import (
    NameKind,
    is_certain_secret,
    is_secret_text,
    kind_of_name,
    may_name_setting,
    reads_as_words,
)
from crashproof.rules.secrets.placeholder import PLACEHOLDER, hidden_with_digest
from crashproof.rules.secrets.texts import hide_secrets, is_option

__all__ = ["canonical_config", "config_hash", "config_leaves"]

_SECRETS_AND_WORDS = frozenset({"auth", "cookie", "secret", "token"})


def canonical_config(config: object) -> dict[str, Any]:
    """The config as plain JSON values, as it will be read back; secrets are hidden.

    `plain_config` says what becomes of each value.

    Raises:
        ConfigError: it is neither a mapping nor an object with named fields, or it cannot be read.
    """
    return _hide_secrets_in(plain_config(config))


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a canonical config: keys sorted, no spaces, shortest floats."""
    return hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()


def config_leaves(config: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Each value of a config that is not a section, with its dotted key: `train.batch_size`."""
    if isinstance(config, dict) and (config or not name):
        for key, value in config.items():
            yield from config_leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, config


def _hide_secrets_in(config: dict[str, Any]) -> dict[str, Any]:
    names = [config.get(each) for each in ("name", "key", "variable")]
    # Such as an entry of Kubernetes' `env`: {"name": "API_KEY", "value": "…"}.
    is_secret_entry = "value" in config and any(
        isinstance(each, str) and _is_secret(each, config["value"]) for each in names
    )
    canonical: dict[str, Any] = {}
    for key, value in config.items():
        is_secret = _is_secret(key, value) or (is_secret_entry and key == "value")
        name = hide_secrets(key, hidden_with_digest)
        while name in canonical:
            name += "'"
        canonical[name] = _hide(key, value) if is_secret else _canonical(value)
    return canonical


def _canonical(value: object) -> object:
    if isinstance(value, dict):
        return _hide_secrets_in(value)
    if isinstance(value, list):
        return _canonical_list(value)
    return hide_secrets(value, hidden_with_digest) if isinstance(value, str) else value


def _canonical_list(config: list[object]) -> list[object]:
    """A list, perhaps of the words of a command line, or a name and its value."""
    canonical = [_canonical(value) for value in config]
    for place, (before, value) in enumerate(pairwise(config), 1):
        if isinstance(before, str) and (
            _is_value_of_option(before, value) or (len(config) == 2 and _is_pair(before, value))
        ):
            canonical[place] = _hide(before, value)
    return canonical


def _is_value_of_option(before: str, value: object) -> bool:
    return is_option(before) and not (isinstance(value, str) and value.startswith("--")) and _is_secret(before, value)


def _is_pair(name: str, value: object) -> bool:
    """Whether two values are a secret's name and the secret, and not two names, such as `token` and `label`."""
    are_words = isinstance(value, str) and reads_as_words(value) and name.lower() in _SECRETS_AND_WORDS
    return _is_secret(name, value) and not are_words


def _hide(name: str, value: object) -> str:
    if isinstance(value, str):
        if PLACEHOLDER.fullmatch(value):
            return value
        return hidden_with_digest(value, is_certain=is_certain_secret(name, value))
    text = msgspec.json.encode(_canonical(value), order="sorted").decode()
    return hidden_with_digest(text, is_certain=not may_name_setting(name))


def _is_secret(name: str, value: object) -> bool:
    """By its name; a number is a setting (`max_token`) but for passwords, and an empty value hides nothing."""
    if isinstance(value, str):
        return is_secret_text(name, value)
    if value is None or isinstance(value, bool):
        return False
    kind = kind_of_name(name)
    if isinstance(value, (int, float)):
        return kind is NameKind.PASSWORD
    if may_name_setting(name) and not _has_text(value):
        # Such as `tokens: {max: 4096}`.
        return False
    return kind in (NameKind.SECRET, NameKind.PASSWORD) and not (isinstance(value, Sized) and not len(value))


def _has_text(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_text, value.values()))
    if isinstance(value, list):
        return any(map(_has_text, value))
    return value is not None and not isinstance(value, (bool, int, float))
