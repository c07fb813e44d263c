"""Settings of checkpoints, evaluation and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model, model_validator

from crashproof.alerts.channels.registry import CHANNELS
from crashproof.alerts.settings import AlertSettings, names_variable, read_address
from crashproof.distillation.settings.section import Section
from crashproof.rules.retention import KeepBest, KeepEvery, KeepLatest, KeepMilestones, RetentionRule

__all__ = ["AlertsConfig", "KeepConfig", "ProgressConfig"]


class KeepConfig(Section):
    """`progress.keep`: checkpoints to keep, namely those that any key selects; by default all."""

    latest: int | None = Field(default=None, ge=1)
    """Number of newest checkpoints."""
    best: int | None = Field(default=None, ge=1)
    """Number of checkpoints with the best `best_by`."""
    best_by: str = "loss"
    """`loss`, a loss component, or a metric of the evaluation."""
    higher_is_better: bool = False
    every: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of this many steps."""
    milestones: tuple[int, ...] = ()
    """Checkpoints at these steps."""

    @model_validator(mode="after")
    def _keeps_the_newest(self) -> KeepConfig:
        if self.rule() is not None and self.latest is None:
            raise ValueError("keep needs latest, so that there is always a checkpoint to resume from")
        return self

    def most(self) -> int | None:
        """How many checkpoints it keeps at most; None if any number."""
        if self.rule() is None or self.every is not None:
            return None
        return (self.latest or 0) + (self.best or 0) + len(self.milestones)

    def rule(self) -> RetentionRule | None:
        """The retention rule; None if all checkpoints are kept."""
        parts: list[RetentionRule] = []
        if self.latest is not None:
            parts.append(KeepLatest(self.latest))
        if self.best is not None:
            parts.append(KeepBest(self.best, by=self.best_by, higher_is_better=self.higher_is_better))
        if self.every is not None:
            parts.append(KeepEvery(self.every))
        if self.milestones:
            parts.append(KeepMilestones(self.milestones))
        if not parts:
            return None
        return reduce(or_, parts)


def _channel_keys() -> dict[str, Any]:
    types, defaults = get_type_hints(AlertSettings), AlertSettings()
    return {
        # An error of pydantic shows the value, so only the channel itself validates a secret.
        name: (
            object if channel.is_secret else types[name],
            Field(getattr(defaults, name), repr=not channel.is_secret),
        )
        for name, channel in CHANNELS.items()
    }


_ChannelsConfig = create_model("_ChannelsConfig", __base__=Section, **_channel_keys())


class AlertsConfig(_ChannelsConfig):  # type: ignore[misc, valid-type]  # mypy does not follow `create_model`.
    """`progress.alerts`: whom to alert, and of what; one key per channel, as in `AlertSettings`.

    An address may be `env:NAME`: it is stored in that environment variable.
    """

    kinds: tuple[str, ...] | None = None
    disk_low_bytes: int | None = Field(default=None, ge=0)
    budget_dollars: Decimal | None = Field(default=None, gt=0)
    """Default: the budget of a teacher of kind `api`."""

    @model_validator(mode="after")
    def _can_be_used(self) -> AlertsConfig:
        self._settings(dict.fromkeys(self._variables()), budget=None)
        return self

    def settings(self, environment: Mapping[str, str], *, budget: Decimal | None) -> AlertSettings:
        """The tracker's settings, with addresses read from the environment.

        Raises:
            ConfigError: an environment variable is not set, or holds no address.
        """
        found = {
            name: read_address(variable, environment, where=f"progress.alerts.{name}")
            for name, variable in self._variables().items()
        }
        return self._settings(found, budget=budget)

    def _variables(self) -> dict[str, str]:
        """The channels that are set to `env:NAME`."""
        return {
            name: value
            for name, channel in CHANNELS.items()
            if channel.takes_variable and names_variable(value := getattr(self, name))
        }

    def _settings(self, found: Mapping[str, str | None], *, budget: Decimal | None) -> AlertSettings:
        settings = dict(self) | dict(found)
        if self.budget_dollars is None:
            settings["budget_dollars"] = budget
        return AlertSettings(**settings)


class ProgressConfig(Section):
    """`progress`: settings that never change the result."""

    checkpoint_interval: Annotated[int, Field(ge=1)] | Literal["auto"] = 50
    """Optimizer steps between checkpoints; the last step always has one. auto: by what a save costs, and failures."""
    saves_behind: bool = True
    """Save checkpoints asynchronously; otherwise training waits for each save."""
    max_failed_saves: int | None = Field(default=5, ge=0)
    """Saves in a row that may fail; training waits for the next one, and stops if it fails too. null: any number."""
    last_save_seconds: float = Field(default=600, ge=0)
    """How long a save that has to succeed is tried again: that one, and the last of the run."""
    keep: KeepConfig = KeepConfig()
    eval_samples: int = Field(default=64, ge=1)
    """Held-out prompts that the student answers in an evaluation; perplexity is over all held-out data."""
    eval_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations on held-out data; the last step then has one too."""
    ignore_config_keys: tuple[str, ...] = ()
    """Further dotted keys, or patterns, whose change continues the run instead of beginning a new one."""
    alerts: AlertsConfig = AlertsConfig()
