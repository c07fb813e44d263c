"""The session that a caller requests."""

from __future__ import annotations

import os
from typing import Any

from msgspec import Struct

from crashproof.disk.run_folder import is_folder_name
from crashproof.errors import ConfigError, InvalidMetric
from crashproof.records.lines.checksummed_line import MAX_NESTING
from crashproof.records.states import OnConfigChange, SessionKind
from crashproof.rules.identity import IdentityRules, canonical_config, config_hash
from crashproof.scalars import as_int

__all__ = ["RequestedSession", "new_session_id"]


class RequestedSession(Struct, frozen=True, kw_only=True):
    """The session that a caller wants to write.

    Raises:
        ConfigError: `total_steps` is below 1, or `session_id` cannot name a folder.
    """

    session_id: str
    """For a new session; one that exists keeps its own."""
    config: dict[str, Any]
    """Canonical, without secrets."""
    config_hash: str
    """Empty if the caller has no config: the session keeps its own, or waits for one."""
    rules: IdentityRules
    """What the caller knows of the config's keys."""
    kind: SessionKind
    """For a new session."""
    total_steps: int
    on_config_change: OnConfigChange
    is_fresh: bool
    """Whether to begin a new session even if the config is the same."""
    accepts_loss: bool = False
    """Whether to begin one although the records of an earlier one are lost: its checkpoints are being adopted."""

    @classmethod
    def from_arguments(
        cls,
        config: object,
        total_steps: object,
        *,
        session_id: str | None,
        on_config_change: OnConfigChange | str,
        rules: IdentityRules,
        is_fresh: bool,
        kind: SessionKind,
    ) -> RequestedSession:
        """Check the arguments of a `ProgressTracker`.

        Raises:
            ConfigError: `config` cannot be kept, `total_steps` not a whole number of at least 1, `session_id`
                cannot name a folder, or `on_config_change` is not one of the choices.
        """
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
            session_id=session_id or new_session_id(),
            config=canonical,
            config_hash=config_hash(canonical),
            rules=rules,
            kind=kind,
            total_steps=num_steps,
            on_config_change=_parse_on_config_change(on_config_change),
            is_fresh=is_fresh,
        )

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ConfigError(
                f"A run needs at least 1 step, got total_steps = {self.total_steps}.",
                hint="Set the number of optimizer steps to train.",
            )
        if not is_folder_name(self.session_id):
            raise ConfigError(
                f"A session_id must be able to name a folder of the archive, got {self.session_id!r}.",
                hint="Use letters, digits, dashes and underscores.",
            )


def new_session_id() -> str:
    """A random name for a new session."""
    return f"training_{os.urandom(6).hex()}"


def _parse_on_config_change(choice: OnConfigChange | str) -> OnConfigChange:
    try:
        return OnConfigChange(choice)
    except ValueError:
        raise ConfigError(f"on_config_change must be one of {', '.join(OnConfigChange)}, got {choice!r}.") from None
