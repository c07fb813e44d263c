"""What is kept, and who is alerted."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from pydantic import Field, model_validator

from crashproof.alerts.settings import AlertSettings, names_variable, read_address
from crashproof.distillation.settings.section import Section
from crashproof.rules.retention import KeepBest, KeepEvery, KeepLatest, KeepMilestones, RetentionRule

__all__ = [
    "AlertsConfig",
    "KeepConfig",
    "ProgressConfig",
]

_SOME_ADDRESS = "https://localhost"


class KeepConfig(Section):
    """`progress.keep`: which checkpoints stay; one that any key asks for does. Without any key all stay."""

    latest: int | None = Field(default=None, ge=1)
    """So many of the newest."""
    best: int | None = Field(default=None, ge=1)
    """So many with the best `best_by`."""
    best_by: str = "loss"
    """`loss`, a loss component, or a number of the evaluation."""
    higher_is_better: bool = False
    every: int | None = Field(default=None, ge=1)
    """Those at multiples of so many steps."""
    milestones: tuple[int, ...] = ()
    """Those at these steps."""

    @model_validator(mode="after")
    def _keeps_the_newest(self) -> KeepConfig:
        if self.rule() is not None and self.latest is None:
            raise ValueError("keep needs latest, so that there is always one to resume from")
        return self

    def rule(self) -> RetentionRule | None:
        """The same as an object that decides; None where all stay."""
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
        rule = parts[0]
        for part in parts[1:]:
            rule = rule | part
        return rule


class AlertsConfig(Section):
    """`progress.alerts`: whom to alert, and of what; see `AlertSettings`."""

    webhook: str | None = Field(default=None, repr=False)
    """An address, or `env:NAME`: it stands in that variable of the environment."""
    slack_webhook: str | None = Field(default=None, repr=False)
    command: tuple[str, ...] | str | None = Field(default=None, repr=False)
    desktop: bool = False
    bell: bool = False
    kinds: tuple[str, ...] | None = None
    disk_low_bytes: int | None = Field(default=None, ge=0)
    budget_dollars: Decimal | None = Field(default=None, gt=0)
    """By default the budget of a teacher of kind `api`."""

    @model_validator(mode="after")
    def _can_be_used(self) -> AlertsConfig:
        self._settings(
            {name: _SOME_ADDRESS for name, value in self._addresses().items() if names_variable(value)}, budget=None
        )
        return self

    def settings(self, environment: Mapping[str, str], *, budget: Decimal | None) -> AlertSettings:
        """The same for the tracker, with what the environment says.

        Raises:
            ConfigError: a variable that is named is not set, or holds no address.
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
    """`progress`: what never changes the result."""

    checkpoint_interval: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints; the last step always has one."""
    saves_behind: bool = True
    """Write checkpoints behind the training; otherwise it waits for each."""
    keep: KeepConfig = KeepConfig()
    eval_samples: int = Field(default=64, ge=1)
    """Held-out prompts that the student answers in an evaluation; the perplexity is of all held-out data."""
    eval_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two evaluations on held-out data; the last step then has one too."""
    alerts: AlertsConfig = AlertsConfig()
