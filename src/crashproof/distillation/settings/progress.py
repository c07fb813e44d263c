"""Settings of checkpoints, evaluation and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import reduce
from operator import or_

from pydantic import Field, model_validator

from crashproof.alerts.settings import AlertSettings, names_variable, read_address
from crashproof.distillation.settings.section import Section
from crashproof.rules.retention import KeepBest, KeepEvery, KeepLatest, KeepMilestones, RetentionRule

__all__ = ["AlertsConfig", "KeepConfig", "ProgressConfig"]

_SOME_ADDRESS = "https://localhost"


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


class AlertsConfig(Section):
    """`progress.alerts`: recipients and kinds of alerts; see `AlertSettings`."""

    webhook: str | None = Field(default=None, repr=False)
    """A URL, or `env:NAME` for the environment variable that contains it."""
    slack_webhook: str | None = Field(default=None, repr=False)
    command: tuple[str, ...] | str | None = Field(default=None, repr=False)
    desktop: bool = False
    bell: bool = False
    kinds: tuple[str, ...] | None = None
    disk_low_bytes: int | None = Field(default=None, ge=0)
    budget_dollars: Decimal | None = Field(default=None, gt=0)
    """Default: the budget of a teacher of kind `api`."""

    @model_validator(mode="after")
    def _can_be_used(self) -> AlertsConfig:
        self._settings(
            {name: _SOME_ADDRESS for name, value in self._addresses().items() if names_variable(value)}, budget=None
        )
        return self

    def settings(self, environment: Mapping[str, str], *, budget: Decimal | None) -> AlertSettings:
        """The tracker's settings, with addresses from the environment.

        Raises:
            ConfigError: A named variable is not set, or is not an address.
        """
        found = {
            name: read_address(value, environment, where=f"progress.alerts.{name}")
            for name, value in self._addresses().items()
            if value is not None and names_variable(value)
        }
        return self._settings(found, budget=budget)

    def _addresses(self) -> dict[str, str | None]:
        return {"webhook": self.webhook, "slack_webhook": self.slack_webhook}

    def _settings(self, found: dict[str, str], *, budget: Decimal | None) -> AlertSettings:
        addresses = self._addresses() | found
        return AlertSettings(
            webhook=addresses["webhook"],
            slack_webhook=addresses["slack_webhook"],
            command=self.command,
            desktop=self.desktop,
            bell=self.bell,
            kinds=None if self.kinds is None else frozenset(self.kinds),
            disk_low_bytes=self.disk_low_bytes,
            budget_dollars=budget if self.budget_dollars is None else self.budget_dollars,
        )


class ProgressConfig(Section):
    """`progress`: settings that never change the result."""

    checkpoint_interval: int = Field(default=50, ge=1)
    """Optimizer steps between checkpoints; the last step always has one."""
    saves_behind: bool = True
    """Save checkpoints asynchronously; otherwise training waits for each save."""
    keep: KeepConfig = KeepConfig()
    eval_samples: int = Field(default=64, ge=1)
    """Held-out prompts that the student answers in an evaluation; perplexity is over all held-out data."""
    eval_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations on held-out data; the last step then has one too."""
    alerts: AlertsConfig = AlertsConfig()
