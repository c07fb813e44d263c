"""Which session the caller wants."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crashproof.errors import ConfigError, InvalidMetric
from crashproof.records.checksummed_line import MAX_NESTING
from crashproof.records.states import OnConfigChange, SessionKind
from crashproof.rules.identity import canonical_config, config_hash
from crashproof.scalars import as_int

__all__ = [
    "Identity",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which session the caller wants to write."""

    session_id: str
    """For a session that is new."""
    config: dict[str, Any]
    """Canonical, without secrets."""
    kind: SessionKind
    """Of a session that is new."""
    config_hash: str
    """Empty where the caller has no config: the session goes on with its own, or waits for one."""
    total_steps: int
    on_config_change: OnConfigChange
    is_fresh: bool
    """Begin anew even where the config is the same."""

    @classmethod
    def of(
        cls,
        config: Any,
        total_steps: Any,
        *,
        session_id: str | None,
        on_config_change: OnConfigChange | str,
        is_fresh: bool,
        kind: SessionKind = SessionKind.TRAINING,
    ) -> Identity:
        """What a caller's arguments mean.

        Raises:
            ConfigError: `config` is no mapping, or `total_steps` no whole number.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"A config must be a mapping, got {type(config).__name__}.",
                hint="Pass a dict, such as a YAML mapping.",
            )
        try:
            num_steps = as_int(total_steps, "total_steps")
        except InvalidMetric as error:
            raise ConfigError(error.message, hint="Set the number of optimizer steps to train.") from error
        try:
            canonical = canonical_config(config)
        except RecursionError:
            raise ConfigError(
                f"The config is nested too deeply, or holds itself; {MAX_NESTING} levels are read.",
                hint="Pass plain settings, such as a dict of numbers and texts.",
            ) from None
        return cls(
            session_id=session_id or f"training_{secrets.token_hex(6)}",
            config=canonical,
            kind=kind,
            config_hash=config_hash(canonical),
            total_steps=num_steps,
            on_config_change=_on_config_change(on_config_change),
            is_fresh=is_fresh,
        )


def _on_config_change(wanted: OnConfigChange | str) -> OnConfigChange:
    try:
        return OnConfigChange(wanted)
    except ValueError:
        raise ConfigError(f"on_config_change must be one of {', '.join(OnConfigChange)}, got {wanted!r}.") from None
